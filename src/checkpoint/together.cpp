#include "checkpoint/together.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/entries.h"
#include "checkpoint/folder.h"
#include "core/hash.h"

namespace temper {
namespace {

// What the writers' reports add up to. The first rank's names come first.
Manifest merge_reports(const std::vector<std::string>& reports) {
  Manifest manifest;
  std::unordered_map<std::string, size_t> index;
  for (const std::string& text : reports) {
    if (text.empty()) continue;  // a rank that wrote nothing
    ShardReport report = parse_shard_report(text);
    manifest.files.push_back(std::move(report.file));
    for (TensorRecord& tensor : report.tensors) {
      const auto [found, is_new] = index.emplace(tensor.name, manifest.tensors.size());
      if (is_new) {
        manifest.tensors.push_back(std::move(tensor));
        continue;
      }
      TensorRecord& known = manifest.tensors[found->second];
      TEMPER_CHECK(known.shape == tensor.shape && known.dtype == tensor.dtype,
                   "ranks hold parts of different shapes or types of tensor {}", tensor.name);
      known.boxes.insert(known.boxes.end(), tensor.boxes.begin(), tensor.boxes.end());
    }
  }
  return manifest;
}

// Ranks that see other files than the first under one path would mix two checkpoints.
void compare_contents(const std::string& path, const std::vector<std::string>& contents) {
  for (size_t r = 1; r < contents.size(); ++r)
    if (contents[r] != contents[0])
      throw IoError(
          "checkpoint {}: rank 0 finds other contents ({}) than rank {} ({}). Do all ranks see the same file "
          "system?",
          path, contents[0], r, contents[r]);
}

}  // namespace

void save_together(FileSystem& files, const std::string& path, const CheckpointState& state, const Agreement& ranks) {
  std::optional<AtomicDirectory> folder;  // the first rank's
  EntryBoxes own;
  const auto begun = ranks.act("checkpoint begun", [&] {
    own = describe_entries(state.tensors);
    if (!ranks.leads()) return std::string(own.any_box() ? "writes" : "");
    folder.emplace(files, path);
    return folder->path();
  });
  const auto writers_before =
      std::count_if(begun.begin(), begun.begin() + ranks.rank(), [](const std::string& said) { return !said.empty(); });
  const auto written = ranks.act("checkpoint shards", [&] {
    if (!ranks.leads() && !own.any_box()) return std::string();
    const FileRecord file = write_shard(files, begun[0], static_cast<int>(writers_before), own.tensors, own.data);
    if (!ranks.leads()) std::erase_if(own.tensors, [](const TensorRecord& tensor) { return tensor.boxes.empty(); });
    return encode_shard_report({file, own.tensors});
  });
  ranks.act("checkpoint committed", [&] {
    if (!ranks.leads()) return std::string();
    Manifest manifest = merge_reports(written);
    manifest.header = state.header;
    manifest.mesh = state.mesh;
    commit_checkpoint_folder(files, *folder, path, std::move(manifest));
    return std::string();
  });
}

LoadedCheckpoint load_together(FileSystem& files, const std::string& path, const ChooseDestinations& destinations,
                               const Agreement& ranks) {
  CheckpointHeader header;
  const auto contents = ranks.act("checkpoint read", [&] {
    const Manifest manifest = open_checkpoint_folder(files, path);
    header = manifest.header;
    const std::vector<TensorEntry> places = destinations(header);  // kept while they are read into
    const auto wanted = match_destinations(path, manifest, places);
    ReadPlan plan = plan_reads(manifest, wanted);
    if (ranks.size() > 1) add_blocks_between(manifest, ranks.rank(), ranks.size(), &plan);
    const auto problems = read_checkpoint_files(files, path, manifest, std::move(plan),
                                                ranks.size() > 1 ? ReadScope::kNeeded : ReadScope::kEverything,
                                                ReadMode::kStopAtFirstProblem);
    if (!problems.empty())
      throw FormatError(
          "checkpoint {} is corrupt: {}. Use another one; `temper checkpoint verify` shows which are whole.", path,
          describe(problems[0]));
    std::string hashes = format("{} {} {}", header.step, header.epoch, header.time);
    for (const FileRecord& file : manifest.files) hashes += file.xxh3_128;
    return xxh3_128_hex(hashes);
  });
  compare_contents(path, contents);
  return {path, header};
}

}  // namespace temper
