#include "checkpoint/together.h"

#include <algorithm>
#include <optional>
#include <unordered_map>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/entries.h"
#include "checkpoint/fetch.h"
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

// A partner that cannot write costs its copy, not the checkpoint.
std::string copy_to_partners(FileSystem& files, const std::vector<std::string>& written, const std::string& folder,
                             const Agreement& ranks, const Spread& spread) {
  if (spread.partners == nullptr || !spread.partners->any()) return {};
  std::vector<FileRecord> records;
  for (const std::string& report : written)
    records.push_back(report.empty() ? FileRecord{} : parse_shard_report(report).file);
  const std::string failure = spread.partners->exchange(files, records, folder);
  for (const std::string& each : ranks.tell("copies acknowledged", failure))
    if (!each.empty()) return each;
  return {};
}

}  // namespace

std::string save_together(FileSystem& files, const std::string& path, const CheckpointState& state,
                          const Agreement& ranks, const Spread& spread) {
  const NodeLayout& nodes = spread.nodes;
  std::optional<AtomicDirectory> folder;  // of this rank's node, if it is the node's first
  EntryBoxes own;
  const auto begun = ranks.act("checkpoint begun", [&] {
    own = describe_entries(state.tensors);
    const char* writes = own.any_box() || ranks.leads() ? "+" : "-";
    if (!nodes.leads(ranks.rank())) return std::string(writes);
    folder.emplace(files, path);
    return writes + folder->path();
  });
  const auto is_writer = [](const std::string& said) { return said.front() == '+'; };
  const std::string here = begun[static_cast<size_t>(nodes.leader_of(ranks.rank()))].substr(1);
  const auto shard = std::count_if(begun.begin(), begun.begin() + ranks.rank(), is_writer);
  const auto written = ranks.act("checkpoint shards", [&] {
    if (!is_writer(begun[static_cast<size_t>(ranks.rank())])) return std::string();
    const FileRecord file = write_shard(files, here, static_cast<int>(shard), own.tensors, own.data);
    if (!ranks.leads()) std::erase_if(own.tensors, [](const TensorRecord& tensor) { return tensor.boxes.empty(); });
    return encode_shard_report({file, own.tensors});
  });
  const std::string not_copied = copy_to_partners(files, written, here, ranks, spread);
  const auto manifest = [&] {
    Manifest merged = merge_reports(written);
    merged.header = state.header;
    merged.mesh = state.mesh;
    merged.mesh.nodes = nodes.num_nodes();
    return merged;
  };
  if (nodes.num_nodes() == 1) {
    ranks.act("checkpoint committed", [&] {
      if (ranks.leads()) commit_checkpoint_folder(files, *folder, path, manifest());
      return std::string();
    });
    return not_copied;
  }
  const std::string text = ranks.act("checkpoint described", [&] {
    return ranks.leads() ? complete_checkpoint_folder(files, *folder, path, manifest()) : std::string();
  })[0];
  const FileRecord global = parse_manifest(text, path + "/" + kManifestName).files.back();
  const bool receives = folder && !ranks.leads();
  fetch_file(files, global, here, 0, receives ? here : "", ranks);
  ranks.act("checkpoint complete", [&] {
    if (receives) complete_folder_part(files, *folder, global, text);
    return std::string();
  });
  ranks.act("checkpoint committed", [&] {
    if (folder) folder->commit();
    return std::string();
  });
  return not_copied;
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
