#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/folder.h"
#include "checkpoint/together.h"
#include "core/clock.h"
#include "core/log.h"

namespace temper {
namespace {

std::vector<int64_t> find_steps(FileSystem& files, const std::string& directory) {  // newest first
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(files, directory))
    if (const int64_t step = parse_step_name(name); step >= 0 && is_folder(directory + "/" + name))
      steps.push_back(step);
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

// The steps that all ranks find.
std::vector<int64_t> agreed_steps(FileSystem& files, const std::string& directory, const Agreement& ranks) {
  std::vector<int64_t> steps;
  const auto found = ranks.act("checkpoints found", [&] {
    steps = find_steps(files, directory);
    return join(steps);
  });
  for (size_t r = 1; r < found.size(); ++r)
    if (found[r] != found[0])
      throw IoError("{}: rank 0 finds the steps [{}] there, rank {} [{}]. Do all ranks see the same file system?",
                    directory, found[0], r, found[r]);
  return steps;
}

// LATEST only helps people and scripts; readers look at the folders. So its failure is worth a warning, not the save.
void write_latest(FileSystem& files, const std::string& directory, int64_t step) {
  const std::string path = directory + "/LATEST";
  const std::string temporary = path + ".tmp-" + random_tag();
  try {
    write_synced_file(files, temporary, step_name(step) + "\n");
    if (files.rename(temporary, path) != 0)
      throw IoError("{}: cannot be renamed ({}).", temporary, std::strerror(errno));
    sync_folder(files, directory);
  } catch (const IoError& error) {
    files.unlink(temporary);
    log_warning("The checkpoint is saved, but the hint file LATEST is not: {}", error.what());
  }
}

// First renamed, so that a half deleted folder is never taken for a checkpoint.
void delete_checkpoint(FileSystem& files, const std::string& path) {
  const std::string doomed = path + ".tmp-" + random_tag();
  if (files.rename(path, doomed) != 0) throw IoError("{}: cannot be renamed ({}).", path, std::strerror(errno));
  sync_folder(files, parent_folder(path));
  remove_tree(files, doomed);
}

}  // namespace

LoadedCheckpoint load_checkpoint(FileSystem& files, const std::string& path, const ChooseDestinations& destinations) {
  return load_together(files, path, destinations, Agreement());
}

CheckpointHeader read_checkpoint_header(FileSystem& files, const std::string& path) {
  return open_checkpoint_folder(files, path).header;
}

CheckpointStore::CheckpointStore(FileSystem& files, std::string directory, int keep_local, Communicator* ranks)
    : files_(files), directory_(std::move(directory)), keep_local_(keep_local), ranks_(ranks) {
  TEMPER_CHECK(keep_local >= 2, "keep_local is {}, at least 2 are kept", keep_local);
}

void CheckpointStore::remove_stale() { remove_unfinished(files_, directory_); }

std::string CheckpointStore::save(const CheckpointState& state) {
  CheckpointState timed = state;
  timed.header.time = seconds_since_epoch();
  const std::string path = directory_ + "/" + step_name(timed.header.step);
  verified_.erase(path);
  try {
    save_together(files_, path, timed, ranks_);
  } catch (const SyncError& error) {
    // The kernel may have dropped the pages it could not write, so a second fsync could lie: all is written anew.
    log_warning("{} The checkpoint is written once more, under a new name.", error.what());
    save_together(files_, path, timed, ranks_);
  }
  if (ranks_.leads()) write_latest(files_, directory_, timed.header.step);
  delete_old(path);
  return path;
}

// The first rank decides what goes, and asks the others to read with it what must be verified before.
void CheckpointStore::delete_old(const std::string& newest_path) {
  ranks_.act("old checkpoints", [&] {
    if (!ranks_.leads()) {
      while (verify_share()) continue;
      return std::string();
    }
    std::exception_ptr failure;
    try {
      const auto steps = find_steps(files_, directory_);
      if (static_cast<int>(steps.size()) > keep_local_) delete_beyond_limit(steps, newest_path);
    } catch (const Error&) {
      failure = std::current_exception();
    }
    ranks_.tell("checkpoint to verify", "");  // no more
    if (failure) std::rethrow_exception(failure);
    return std::string();
  });
}

void CheckpointStore::delete_beyond_limit(const std::vector<int64_t>& steps, const std::string& newest_path) {
  if (!reads_back(newest_path))
    throw IoError("checkpoint {} reads back differently from what was written. Older ones are kept; check the disk.",
                  newest_path);
  int kept = 0;
  int kept_verified = 0;
  for (const int64_t step : steps) {
    const std::string path = directory_ + "/" + step_name(step);
    if (kept < keep_local_ || kept_verified < 2) {
      ++kept;
      if (kept_verified < 2 ? reads_back(path) : verified_.count(path) > 0) ++kept_verified;
      continue;
    }
    try {
      delete_checkpoint(files_, path);
      verified_.erase(path);
    } catch (const IoError& error) {
      log_warning("An old checkpoint stays: {}", error.what());
    }
  }
}

// The first rank's half of a reading by all; the others' is verify_share().
bool CheckpointStore::reads_back(const std::string& path) {
  if (verified_.count(path) > 0) return true;
  ranks_.tell("checkpoint to verify", path);
  for (const std::string& damage : ranks_.tell("verified checkpoint", find_damage(path)))
    if (!damage.empty()) {
      log_warning("{}", damage);
      return false;
    }
  verified_.insert(path);
  return true;
}

bool CheckpointStore::verify_share() {
  const std::string path = ranks_.tell("checkpoint to verify", "").front();
  if (path.empty()) return false;
  ranks_.tell("verified checkpoint", find_damage(path));
  return true;
}

// In this rank's share of the files, read from the disk; empty: none.
std::string CheckpointStore::find_damage(const std::string& path) const {
  try {
    const Manifest manifest = open_checkpoint_folder(files_, path);
    ReadPlan plan;
    plan.files.resize(manifest.files.size());
    for (auto i = static_cast<size_t>(ranks_.rank()); i < manifest.files.size();
         i += static_cast<size_t>(ranks_.size()))
      plan.files[i] = whole_file(manifest.files[i]);
    const auto problems = read_checkpoint_files(files_, path, manifest, std::move(plan), ReadScope::kNeeded,
                                                ReadMode::kStopAtFirstProblem, /*from_disk=*/true);
    return problems.empty() ? "" : format("checkpoint {} is corrupt: {}.", path, describe(problems[0]));
  } catch (const Error& error) {
    return error.what();
  }
}

std::vector<CheckpointInfo> CheckpointStore::list(CheckDepth depth) const {
  std::vector<CheckpointInfo> infos;
  for (const int64_t step : find_steps(files_, directory_)) {
    CheckpointInfo info;
    info.path = directory_ + "/" + step_name(step);
    info.step = step;
    try {
      const Manifest manifest = open_checkpoint_folder(files_, info.path);
      info.time = manifest.header.time;
      for (const FileRecord& file : manifest.files) info.size_bytes += file.size_bytes;
      if (depth == CheckDepth::kEveryByte) {
        const auto problems = read_checkpoint_files(files_, info.path, manifest, {}, ReadScope::kEverything,
                                                    ReadMode::kStopAtFirstProblem);
        if (!problems.empty()) info.why_not = describe(problems[0]);
      }
    } catch (const Error& error) {
      info.why_not = error.what();
    }
    info.good = info.why_not.empty();
    infos.push_back(std::move(info));
  }
  return infos;
}

std::optional<LoadedCheckpoint> CheckpointStore::load_newest(const ChooseDestinations& destinations) {
  std::vector<std::string> refused;
  for (const int64_t step : agreed_steps(files_, directory_, ranks_)) {
    const std::string path = directory_ + "/" + step_name(step);
    try {
      LoadedCheckpoint loaded = load(path, destinations);
      if (!refused.empty() && ranks_.leads())
        log_warning("Resuming from {}, not from a newer checkpoint: {} newer did not verify, see above.", path,
                    refused.size());
      return loaded;
    } catch (const FormatError& error) {
      refused.push_back(error.what());
    } catch (const IoError& error) {
      refused.push_back(error.what());
    }
    if (ranks_.leads()) log_warning("{}", refused.back());
  }
  if (refused.empty()) return std::nullopt;
  throw FormatError(
      "{}: none of its {} checkpoints verifies. The newest: {} Start afresh with --checkpoint.resume=never.",
      directory_, refused.size(), refused[0]);
}

LoadedCheckpoint CheckpointStore::load(const std::string& path, const ChooseDestinations& destinations) {
  LoadedCheckpoint loaded = load_together(files_, path, destinations, ranks_);
  verified_.insert(path);
  return loaded;
}

void CheckpointStore::set_aside_newer_than(int64_t step) {
  for (const int64_t newer : find_steps(files_, directory_)) {
    if (newer <= step) continue;
    const std::string path = directory_ + "/" + step_name(newer);
    const std::string aside = path + ".aside-" + random_tag();
    if (files_.rename(path, aside) != 0)
      throw IoError("{}: cannot be renamed to {} ({}). Move it away by hand.", path, aside, std::strerror(errno));
    log_warning("{} belongs to a course of training that step {} leaves; it is now {}.", path, step, aside);
    verified_.erase(path);
  }
  if (is_folder(directory_)) sync_folder(files_, directory_);
}

}  // namespace temper
