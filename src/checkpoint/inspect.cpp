#include "checkpoint/inspect.h"

#include <ATen/ops/empty.h>

#include <algorithm>
#include <cstdio>
#include <ctime>

#include "checkpoint/folder.h"

namespace temper {
namespace {

bool looks_like_checkpoint(FileSystem& files, const std::string& path) {
  if (parse_step_name(base_name(path)) >= 0) return true;
  const auto names = list_folder(files, path);
  return std::binary_search(names.begin(), names.end(), kManifestName) ||
         std::binary_search(names.begin(), names.end(), kCommittedName);
}

std::string show_bytes(int64_t size_bytes) {
  constexpr const char* kUnits[] = {"B", "kB", "MB", "GB", "TB", "PB", "EB"};
  double value = static_cast<double>(size_bytes);
  size_t unit = 0;
  for (; value >= 1000 && unit + 1 < std::size(kUnits); ++unit) value /= 1000;
  char text[32];
  std::snprintf(text, sizeof text, unit == 0 ? "%.0f %s" : "%.2f %s", value, kUnits[unit]);
  return text;
}

std::string show_time(double seconds) {
  const auto whole = static_cast<time_t>(seconds);
  tm parts{};
  char text[32] = "?";
  if (::gmtime_r(&whole, &parts) != nullptr) std::strftime(text, sizeof text, "%Y-%m-%d %H:%M:%S UTC", &parts);
  return text;
}

int64_t total_bytes(const Manifest& manifest) {
  int64_t sum = 0;
  for (const FileRecord& file : manifest.files) sum += file.size_bytes;
  return sum;
}

// What a folder of one node alone must have, and what it may lack where others have the rest.
void refuse_missing(const std::string& path, const FolderPart& part) {
  for (const std::string& wrong : part.wrong)
    if (!wrong.empty() && part.manifest.mesh.nodes == 1)
      throw FormatError("{}: {}. Use another checkpoint.", path, wrong);
}

// "  2 of 3 files, the others are on other nodes"; empty: all are here.
std::string part_text(const FolderPart& part) {
  const auto here =
      std::count_if(part.wrong.begin(), part.wrong.end(), [](const std::string& wrong) { return wrong.empty(); });
  if (here == static_cast<int64_t>(part.wrong.size())) return {};
  return format("  {} of {} files, the others are on other nodes", here, part.wrong.size());
}

// Every step_NNNNNN below `folder`, newest first.
std::vector<std::string> steps_in(FileSystem& files, const std::string& folder) {
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(files, folder))
    if (const int64_t step = parse_step_name(name); step >= 0) steps.push_back(step);
  std::sort(steps.rbegin(), steps.rend());
  std::vector<std::string> paths;
  for (int64_t step : steps) paths.push_back(folder + "/" + step_name(step));
  return paths;
}

}  // namespace

std::vector<std::string> find_checkpoints(FileSystem& files, const std::string& path) {
  if (!is_folder(path)) throw IoError("{}: there is no such folder. Give a run directory or a checkpoint.", path);
  if (looks_like_checkpoint(files, path)) return {path};
  for (const std::string& folder : {path, path + "/checkpoints"}) {
    if (!is_folder(folder)) continue;
    std::vector<std::string> found = steps_in(files, folder);
    if (found.empty())
      for (const std::string& stage : list_folder(files, folder))
        if (is_folder(folder + "/" + stage))
          for (std::string& step : steps_in(files, folder + "/" + stage)) found.push_back(std::move(step));
    if (!found.empty()) return found;
  }
  throw IoError("{}: there is no checkpoint below it. Give a run directory or a checkpoint.", path);
}

std::string list_checkpoints(FileSystem& files, const std::string& path) {
  std::string out;
  for (const std::string& checkpoint : find_checkpoints(files, path)) {
    try {
      const FolderPart part = open_folder_part(files, checkpoint);
      const Manifest& manifest = part.manifest;
      refuse_missing(checkpoint, part);
      out += format("{}  stage {}  step {}  {}  {}{}\n", checkpoint, manifest.header.stage, manifest.header.step,
                    show_bytes(total_bytes(manifest)), show_time(manifest.header.time), part_text(part));
    } catch (const Error& error) {
      out += format("{}  NOT USABLE: {}\n", checkpoint, error.what());
    }
  }
  return out;
}

std::string describe_checkpoint(FileSystem& files, const std::string& path) {
  const auto found = find_checkpoints(files, path);
  const FolderPart part = open_folder_part(files, found[0]);
  refuse_missing(found[0], part);
  const Manifest& manifest = part.manifest;
  const CheckpointHeader& header = manifest.header;
  std::string out = found[0] + "\n";
  out += format("run {}, stage {}, step {}, policy version {}, epoch {}\n", header.run, header.stage, header.step,
                header.policy_version, header.epoch);
  out += format("saved {} by {}, format version {}\n", show_time(header.time), manifest.writer, kFormatVersion);
  out += format("mesh: replicas {} x shard {} x tensor_parallel {}{}\n", manifest.mesh.replicas, manifest.mesh.shard,
                manifest.mesh.tensor_parallel, part_text(part));
  out += format("data hash {}\n", header.data_hash);
  out += format("files ({}):\n", show_bytes(total_bytes(manifest)));
  for (size_t i = 0; i < manifest.files.size(); ++i)
    out += format("  {}  {}  XXH3-128 {}{}\n", manifest.files[i].name, show_bytes(manifest.files[i].size_bytes),
                  manifest.files[i].xxh3_128, part.wrong[i].empty() ? "" : "  on another node");
  out += format("states ({}):\n", header.blobs.size());
  for (const auto& [name, bytes] : header.blobs)
    out += format("  {}  {}\n", name, show_bytes(static_cast<int64_t>(bytes.size())));
  out += format("tensors ({}):\n", manifest.tensors.size());
  for (const TensorRecord& tensor : manifest.tensors)
    out += format("  {}  {} [{}]{}\n", tensor.name, dtype_name(tensor.dtype), join(tensor.shape),
                  tensor.boxes.size() > 1 ? format("  in {} boxes", tensor.boxes.size()) : "");
  return out;
}

VerifyReport verify_checkpoints(FileSystem& files, const std::string& path) {
  VerifyReport report;
  for (const std::string& checkpoint : find_checkpoints(files, path)) {
    std::vector<std::string> wrong;
    int64_t size_bytes = 0;
    std::string elsewhere;
    try {
      const FolderPart part = open_folder_part(files, checkpoint);
      refuse_missing(checkpoint, part);
      elsewhere = part_text(part);
      for (size_t i = 0; i < part.manifest.files.size(); ++i) {
        const FileRecord& file = part.manifest.files[i];
        if (!part.wrong[i].empty()) continue;
        size_bytes += file.size_bytes;
        try {
          for (const Damage& problem : read_data_file(files, checkpoint, file, FilePlan{}, ReadMode::kFindAllProblems))
            wrong.push_back(describe(problem));
        } catch (const IoError& error) {
          wrong.push_back(error.what());
        }
      }
    } catch (const Error& error) {
      wrong.push_back(error.what());
    }
    if (wrong.empty()) {
      report.text += elsewhere.empty()
                         ? format("{}: whole, {} verified\n", checkpoint, show_bytes(size_bytes))
                         : format("{}: a part, {} verified{}\n", checkpoint, show_bytes(size_bytes), elsewhere);
      continue;
    }
    report.good = false;
    report.text += format("{}: CORRUPT, {} problems\n", checkpoint, wrong.size());
    for (const std::string& line : wrong) report.text += "  " + line + "\n";
  }
  return report;
}

std::vector<TensorEntry> read_tensors(FileSystem& files, const std::string& path, const std::string& prefix) {
  const Manifest manifest = open_checkpoint_folder(files, path);
  std::vector<TensorEntry> entries;
  std::vector<WantedBox> wanted;
  for (const TensorRecord& tensor : manifest.tensors) {
    if (tensor.name.compare(0, prefix.size(), prefix) != 0) continue;
    entries.push_back({tensor.name, at::empty(tensor.shape, tensor.dtype)});
    if (num_elements(tensor.shape) > 0)
      wanted.push_back({&tensor, std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape,
                        static_cast<char*>(entries.back().tensor.data_ptr())});
  }
  const auto problems = read_checkpoint_files(files, path, manifest, plan_reads(manifest, wanted), ReadScope::kNeeded,
                                              ReadMode::kStopAtFirstProblem);
  if (!problems.empty())
    throw FormatError(
        "checkpoint {} is corrupt: {}. Use another one; `temper checkpoint verify` shows which are whole.", path,
        describe(problems[0]));
  return entries;
}

}  // namespace temper
