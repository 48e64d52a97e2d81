#include "apps/run_checkpoints.h"

#include <algorithm>
#include <filesystem>

namespace temper {
namespace fs = std::filesystem;

namespace {

TierCheckpoints look_into(const std::string& stage, const std::string& tier, const std::string& folder) {
  TierCheckpoints found{stage, tier, folder, {}, 0};
  std::error_code none;
  for (const auto& entry : fs::directory_iterator(folder, none))
    if (entry.path().filename().string().find(".tmp-") != std::string::npos) ++found.num_unfinished;
  FileSystem files;
  constexpr int kAnyKeep = 2;
  found.all = CheckpointStore(files, folder, kAnyKeep).list(CheckDepth::kManifest);
  return found;
}

}  // namespace

const CheckpointInfo* TierCheckpoints::newest() const {
  const auto found = std::find_if(all.begin(), all.end(), [](const CheckpointInfo& info) { return info.good; });
  return found == all.end() ? nullptr : &*found;
}

std::vector<std::string> TierCheckpoints::newer_unusable() const {
  std::vector<std::string> why;
  for (const CheckpointInfo& info : all) {
    if (info.good) break;
    why.push_back(info.why_not);
  }
  return why;
}

std::vector<TierCheckpoints> find_run_checkpoints(const std::string& run_dir, const std::optional<RunStatus>& status) {
  std::vector<TierCheckpoints> all;
  std::error_code none;
  const auto add = [&](const std::string& stage, const std::string& tier, const std::string& folder) {
    if (fs::is_directory(folder, none)) all.push_back(look_into(stage, tier, folder));
  };
  if (!status) {
    for (const auto& entry : fs::directory_iterator(run_dir + "/checkpoints", none))
      add(entry.path().filename().string(), "local", entry.path().string());
    return all;
  }
  const fs::path given = status->folder;  // a relative path was meant from here; an absolute one stays what it is
  for (const RunStatus::Stage& stage : status->stages) {
    if (!stage.ram_checkpoints.empty()) add(stage.name, "ram", given / stage.ram_checkpoints);
    // In the run directory, wherever that was moved to, or where checkpoint.local_dir said.
    const std::string own = run_dir + "/checkpoints/" + stage.name;
    add(stage.name, "local", fs::is_directory(own, none) ? own : (given / stage.checkpoints).string());
    if (!stage.durable_checkpoints.empty()) add(stage.name, "durable", given / stage.durable_checkpoints);
  }
  return all;
}

int64_t lag_steps(const TierCheckpoints& tier, const std::vector<TierCheckpoints>& all) {
  int64_t newest = 0;
  for (const TierCheckpoints& other : all)
    if (other.stage == tier.stage && other.newest() != nullptr) newest = std::max(newest, other.newest()->step);
  return newest - (tier.newest() == nullptr ? 0 : tier.newest()->step);
}

}  // namespace temper
