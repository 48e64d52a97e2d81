// temper bench checkpoint --flips: a bit of a file is flipped in a copy of a checkpoint, the checkpoint is loaded as a
// resumed run loads it, and the bit is flipped back.
#include <ATen/ATen.h>
#include <fcntl.h>
#include <sys/mman.h>

#include <cerrno>
#include <cstring>
#include <tuple>

#include "apps/bench_checkpoint.h"
#include "checkpoint/inspect.h"
#include "checkpoint/manifest.h"
#include "checkpoint/reshard.h"
#include "core/clock.h"
#include "core/rng.h"

namespace temper {
namespace {

// The shape of a small model and its moments: matrices and vectors, 62 KB. Small, so that a million loads take minutes.
CheckpointState small_state() {
  CheckpointState state;
  state.header.run = state.header.stage = "bench";
  state.header.step = 1;
  state.header.config_toml = "[run]\nname = \"bench\"\n";
  state.header.model_json = R"({"hidden_size": 40})";
  state.header.blobs["trainer"] = R"({"step": 1, "policy_version": 1})";
  for (const char* group : {"model", "optim/exp_avg", "optim/exp_avg_sq"})
    for (int64_t layer = 0; layer < 4; ++layer) {
      const at::Tensor matrix = at::arange(32 * 40, at::kFloat).add(layer).sin().view({32, 40});
      state.tensors.push_back({format("{}/layers.{}.weight", group, layer), matrix});
      state.tensors.push_back({format("{}/layers.{}.norm", group, layer), matrix[0].clone()});
    }
  return state;
}

// A file's bytes where a reader finds them, to be changed in place.
class WritableMapping {
 public:
  WritableMapping(FileSystem& files, const std::string& path) : path_(path) {
    const int descriptor = files.open(path, O_RDWR | O_CLOEXEC, 0);
    struct stat status {};
    if (descriptor < 0 || files.stat(descriptor, &status) != 0)
      throw IoError("{}: cannot be opened ({}).", path, std::strerror(errno));
    size_bytes_ = static_cast<size_t>(status.st_size);
    void* bytes = ::mmap(nullptr, size_bytes_, PROT_READ | PROT_WRITE, MAP_SHARED, descriptor, 0);
    if (bytes == MAP_FAILED) throw IoError("{}: cannot be mapped ({}).", path, std::strerror(errno));
    bytes_ = static_cast<unsigned char*>(bytes);
    files.close(descriptor);
  }
  WritableMapping(WritableMapping&& other) noexcept
      : path_(std::move(other.path_)), bytes_(std::exchange(other.bytes_, nullptr)), size_bytes_(other.size_bytes_) {}
  ~WritableMapping() {
    if (bytes_ != nullptr) ::munmap(bytes_, size_bytes_);
  }

  const std::string& path() const { return path_; }
  int64_t num_bits() const { return static_cast<int64_t>(size_bytes_) * 8; }
  void flip(int64_t bit) { bytes_[bit / 8] = static_cast<unsigned char>(bytes_[bit / 8] ^ (1 << (bit % 8))); }

 private:
  std::string path_;
  unsigned char* bytes_ = nullptr;
  size_t size_bytes_ = 0;
};

// A copy of what --checkpoint names, or a small checkpoint of two shards; returns its folder.
std::string prepare(FileSystem& files, const CommandLine& line, const std::string& folder) {
  std::string from;
  if (line.given("checkpoint")) {
    from = find_checkpoints(files, line.text("checkpoint")).front();
    const std::string copy = folder + "/" + base_name(from);
    make_folders(files, copy);
    for (const std::string& name : list_folder(files, from))
      write_synced_file(files, copy + "/" + name, read_whole_file(files, from + "/" + name, int64_t{1} << 31));
    return copy;
  }
  from = CheckpointStore(files, folder + "/whole", 2).save(small_state());
  const std::string split = folder + "/" + base_name(from);
  reshard_checkpoint(files, from, split, 2);
  return split;
}

auto fields_of(const CheckpointHeader& header) {
  return std::tie(header.run, header.stage, header.step, header.policy_version, header.epoch, header.time,
                  header.config_toml, header.model_json, header.data_hash, header.blobs);
}

struct Score {
  int64_t flips = 0, detected = 0, harmless = 0, silent = 0;
  void add(const Score& other) {
    flips += other.flips;
    detected += other.detected;
    harmless += other.harmless;
    silent += other.silent;
  }
};

// Loads the checkpoint again and again into the same tensors, and knows what they should hold.
class Judge {
 public:
  Judge(FileSystem& files, const std::string& path) : files_(files), path_(path) {
    expected_ = read_tensors(files, path, "");
    for (const TensorEntry& entry : expected_) places_.push_back({entry.name, at::empty_like(entry.tensor)});
    header_ = read_checkpoint_header(files, path);
    Score whole;
    load(&whole);
    if (whole.harmless != 1) throw FormatError("checkpoint {} does not load as it is. Give a whole one.", path);
  }

  void load(Score* score) {
    ++score->flips;
    for (const TensorEntry& place : places_)
      std::memset(place.tensor.data_ptr(), 0x5a, place.tensor.nbytes());  // what an earlier load left is no answer
    try {
      const auto loaded = load_checkpoint(files_, path_, [this](const CheckpointHeader&) { return places_; });
      ++(is_as_saved(loaded.header) ? score->harmless : score->silent);
    } catch (const Error&) {
      ++score->detected;
    }
  }

 private:
  bool is_as_saved(const CheckpointHeader& header) const {
    if (fields_of(header) != fields_of(header_)) return false;
    for (size_t i = 0; i < places_.size(); ++i)
      if (std::memcmp(places_[i].tensor.const_data_ptr(), expected_[i].tensor.const_data_ptr(),
                      expected_[i].tensor.nbytes()) != 0)
        return false;
    return true;
  }

  FileSystem& files_;
  std::string path_;
  std::vector<TensorEntry> expected_, places_;
  CheckpointHeader header_;
};

BenchFields fields_of(const Score& score) {
  return {{"flips", static_cast<double>(score.flips)},
          {"detected", static_cast<double>(score.detected)},
          {"harmless", static_cast<double>(score.harmless)},
          {"silently_wrong", static_cast<double>(score.silent)}};
}

}  // namespace

int bench_flips(const CommandLine& line, const BenchReport& report) {
  FileSystem files;
  const std::string folder = line.text("dir") + "/bench_checkpoint-" + random_tag();
  make_folders(files, folder);
  const std::string path = prepare(files, line, folder);
  Judge judge(files, path);
  std::vector<WritableMapping> mapped;
  for (const std::string& name : list_folder(files, path))
    if (name != kCommittedName) mapped.emplace_back(files, path + "/" + name);  // which is empty
  std::vector<Score> scores(mapped.size());
  SplitMix64 random(static_cast<uint64_t>(line.integer("seed")));
  const int64_t num_flips = line.integer("flips");
  const Stopwatch watch;
  for (int64_t i = 0; i < num_flips; ++i) {
    // In turn, so that manifest and HDF5 structures have as many as the data have.
    const auto which = static_cast<size_t>(i) % mapped.size();
    const int64_t bit = random.in_range(0, mapped[which].num_bits() - 1);
    mapped[which].flip(bit);
    judge.load(&scores[which]);
    mapped[which].flip(bit);
  }
  const double seconds = watch.seconds();
  Score all;
  for (size_t i = 0; i < mapped.size(); ++i) {
    BenchFields fields = fields_of(scores[i]);
    fields.emplace_back("bits", mapped[i].num_bits());
    report.print(fields, {{"file", base_name(mapped[i].path())}});
    all.add(scores[i]);
  }
  BenchFields fields = fields_of(all);
  fields.emplace_back("seconds", seconds);
  report.print(fields);
  remove_tree(files, folder);
  return all.silent == 0 ? 0 : static_cast<int>(ExitCode::kFormat);
}

}  // namespace temper
