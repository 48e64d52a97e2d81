// temper bench checkpoint: how long training stands still for a save, and how fast states go to the disk and back,
// beside plain copies, writes and reads of as many bytes on the same machine and disk.
#include "apps/bench_checkpoint.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "apps/bench.h"
#include "apps/bench_model.h"
#include "apps/command_line.h"
#include "checkpoint/manifest.h"
#include "checkpoint/writer.h"
#include "core/clock.h"

namespace temper {
namespace {

// As many tensors as a model of a few hundred million parameters has, of different sizes, all bytes written.
CheckpointState state_of_size(int64_t size_bytes) {
  constexpr int64_t kTensors = 300;
  CheckpointState state;
  state.header.run = "bench";
  state.header.stage = "bench";
  int64_t left = size_bytes / 4;
  for (int64_t i = 0; i < kTensors; ++i) {
    const int64_t columns = 576, share = i + 1 == kTensors ? left : left * (1 + i % 3) / ((kTensors - i) * 2);
    const int64_t rows = std::max<int64_t>(1, share / columns);
    state.tensors.push_back(
        {format("model/layer{}.weight", i), at::arange(rows * columns, at::kFloat).view({rows, columns})});
    left -= rows * columns;
  }
  return state;
}

double size_of(const CheckpointState& state) {
  double bytes = 0;
  for (const TensorEntry& entry : state.tensors) bytes += static_cast<double>(entry.tensor.nbytes());
  return bytes;
}

// Of every tensor into another that is there already, with all threads.
double copy_s(const CheckpointState& state, const std::vector<at::Tensor>& copies) {
  const Stopwatch watch;
  for (size_t i = 0; i < copies.size(); ++i) {
    const auto* from = static_cast<const char*>(state.tensors[i].tensor.const_data_ptr());
    auto* to = static_cast<char*>(copies[i].mutable_data_ptr());
    at::parallel_for(0, static_cast<int64_t>(copies[i].nbytes()), kBlockBytes, [&](int64_t begin, int64_t end) {
      std::memcpy(to + begin, from + begin, static_cast<size_t>(end - begin));
    });
  }
  return watch.seconds();
}

// One file: space reserved, then written in blocks, then synced.
double raw_write_s(FileSystem& files, const std::string& path, const std::vector<at::Tensor>& tensors, double bytes) {
  const Stopwatch watch;
  File file = File::create(files, path);
  file.reserve(static_cast<int64_t>(bytes));
  int64_t offset = 0;
  for (const at::Tensor& tensor : tensors) {
    const auto* data = static_cast<const char*>(tensor.const_data_ptr());
    const auto size = static_cast<int64_t>(tensor.nbytes());
    for (int64_t at = 0; at < size; at += kBlockBytes)
      file.write_at(offset + at, data + at, static_cast<size_t>(std::min(kBlockBytes, size - at)));
    offset += size;
  }
  file.sync();
  file.close();
  return watch.seconds();
}

double raw_read_s(FileSystem& files, const std::string& path) {
  const File file = File::open(files, path);
  files.drop_cache(file.descriptor());
  std::vector<char> block(static_cast<size_t>(kBlockBytes));
  const Stopwatch watch;
  for (int64_t offset = 0; file.read_at(offset, block.data(), block.size()) == block.size();) offset += kBlockBytes;
  return watch.seconds();
}

void drop_caches(FileSystem& files, const std::string& folder) {
  for (const std::string& name : list_folder(files, folder)) {
    const File file = File::open(files, folder + "/" + name);
    files.drop_cache(file.descriptor());
  }
}

// Saves and loads of a state of --gb.
void bench_saves(const CommandLine& line, const BenchReport& report) {
  const auto num_saves = line.integer("saves", 1, 1000);
  FileSystem files;
  const std::string folder = line.text("dir") + "/bench_checkpoint-" + random_tag();
  make_folders(files, folder);
  CheckpointState state = state_of_size(static_cast<int64_t>(line.number("gb", 1e-3) * 1e9));
  std::vector<at::Tensor> copies;
  for (const TensorEntry& entry : state.tensors) copies.push_back(entry.tensor.clone());
  const double bytes = size_of(state), gb = bytes / 1e9;
  CheckpointStore store(files, folder, 1 << 20);
  CheckpointWriter writer(store);
  std::vector<double> stalls, copying, saving, writing, loading, reading;
  double first_stall = 0;
  for (int64_t step = 0; step <= num_saves; ++step) {  // the first makes the staging buffers
    state.header.step = step;
    copying.push_back(copy_s(state, copies));
    const Stopwatch stall;
    writer.begin(state);
    (step == 0 ? first_stall : stalls.emplace_back()) = stall.seconds();
    const Stopwatch save;
    writer.finish();
    saving.push_back(save.seconds());
    const std::string path = folder + "/" + step_name(step), raw = folder + "/raw";
    writing.push_back(raw_write_s(files, raw, copies, bytes));
    reading.push_back(raw_read_s(files, raw));
    files.unlink(raw);
    drop_caches(files, path);
    const Stopwatch load;
    store.load(path, [&](const CheckpointHeader&) {
      std::vector<TensorEntry> places;
      for (size_t i = 0; i < copies.size(); ++i) places.push_back({state.tensors[i].name, copies[i]});
      return places;
    });
    loading.push_back(load.seconds());
    remove_tree(files, path);
    report.print({{"step", static_cast<double>(step)},
                  {"stall_ms", (step == 0 ? first_stall : stalls.back()) * 1e3},
                  {"memcpy_ms", copying.back() * 1e3},
                  {"save_gb_s", gb / saving.back()},
                  {"raw_write_gb_s", gb / writing.back()},
                  {"load_gb_s", gb / loading.back()},
                  {"raw_read_gb_s", gb / reading.back()}});
  }
  remove_tree(files, folder);
  report.print({{"saves", static_cast<double>(num_saves)},
                {"gb", gb},
                {"first_stall_ms", first_stall * 1e3},
                {"stall_ms_p50", quantile(stalls, 0.5) * 1e3},
                {"stall_ms_p99", quantile(stalls, 0.99) * 1e3},
                {"memcpy_ms", quantile(copying, 0.5) * 1e3},
                {"save_gb_s", gb / quantile(saving, 0.5)},
                {"raw_write_gb_s", gb / quantile(writing, 0.5)},
                {"load_gb_s", gb / quantile(loading, 0.5)},
                {"raw_read_gb_s", gb / quantile(reading, 0.5)}});
}

}  // namespace

int run_bench_checkpoint(int argc, char** argv) {
  CommandLine line("bench checkpoint",
                   "Measures saves in the background and verified loads; with --with-training what saves cost the\n"
                   "training beside them; with --flips how many flipped bits are detected.",
                   "[--gb G | --with-training --preset 135m | --flips N] [--dir DIR]");
  line.add_option("gb", "GB", "size of the state", "2");
  line.add_option("dir", "DIR", "where to write; what is written there goes again", ".");
  line.add_option("saves", "N", "of each measurement", "5");
  line.add_flag("with-training", "steps of a model (--model or --preset) with and without a save beside them");
  declare_bench_model(line);
  line.add_option("tokens", "TOKENS", "--with-training: of one step", "16384");
  line.add_option("max-write-mb-per-s", "MB/S", "--with-training: as checkpoint.max_write_mb_per_s; 0: no limit", "0");
  line.add_option("flips", "N", "single flipped bits to try, in a copy of --checkpoint", "0");
  line.add_option("checkpoint", "DIR", "--flips: a checkpoint; default: a small one of two shards");
  line.add_option("seed", "N", "--flips: of the bits", "0");
  if (!line.parse(argc, argv)) return 0;
  if (line.integer("flips") > 0) return bench_flips(line, BenchReport(argc, argv, at::kCPU));
  if (line.flag("with-training"))
    bench_with_training(line, BenchReport(argc, argv, compute_type_of(line).device));
  else
    bench_saves(line, BenchReport(argc, argv, at::kCPU));
  return 0;
}

}  // namespace temper
