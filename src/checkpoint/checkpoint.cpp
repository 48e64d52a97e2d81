#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <exception>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/copy.h"
#include "checkpoint/folder.h"
#include "checkpoint/tier_reader.h"
#include "checkpoint/together.h"
#include "core/clock.h"
#include "core/log.h"

namespace temper {
namespace {

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
  FolderPart part = open_folder_part(files, path);
  return part.manifest.mesh.nodes > 1 ? part.manifest.header : open_checkpoint_folder(files, path).header;
}

CheckpointStore::CheckpointStore(FileSystem& files, std::string directory, int keep, Communicator* ranks)
    : files_(files), directory_(std::move(directory)), keep_(keep), ranks_(ranks) {
  TEMPER_CHECK(keep >= 1, "{} checkpoints are to be kept", keep);
}

void CheckpointStore::spread_over(const NodeLayout& nodes, const Partners* partners) {
  nodes_ = nodes;
  partners_ = partners;
}

void CheckpointStore::remove_stale() { remove_unfinished(files_, directory_); }

std::string CheckpointStore::save(const CheckpointState& state) {
  CheckpointState timed = state;
  timed.header.time = seconds_since_epoch();
  const std::string path = directory_ + "/" + step_name(timed.header.step);
  verified_.erase(path);
  const Spread spread{nodes_, partners_};
  try {
    copy_failure_ = save_together(files_, path, timed, ranks_, spread);
  } catch (const SyncError& error) {
    // The kernel may have dropped the pages it could not write, so a second fsync could lie: all is written anew.
    log_warning("{} The checkpoint is written once more, under a new name.", error.what());
    copy_failure_ = save_together(files_, path, timed, ranks_, spread);
  }
  finish_save(path, timed.header.step);
  return path;
}

std::string CheckpointStore::adopt(const std::string& source) {
  const std::string path = directory_ + "/" + base_name(source);
  verified_.erase(path);
  try {
    copy_together(files_, source, path, ranks_);
  } catch (const SyncError& error) {
    log_warning("{} The checkpoint is copied once more, under a new name.", error.what());
    copy_together(files_, source, path, ranks_);
  }
  ranks_.act("copy read back", [&] {
    if (const std::string damage = find_damage(path); !damage.empty()) throw IoError("{}", damage);
    return std::string();
  });
  verified_.insert(path);
  finish_save(path, parse_step_name(base_name(path)));
  return path;
}

void CheckpointStore::finish_save(const std::string& path, int64_t step) {
  if (nodes_.leads(ranks_.rank())) write_latest(files_, directory_, step);
  if (nodes_.num_nodes() > 1)
    delete_old_on_nodes(path);
  else
    delete_old(path);
}

void CheckpointStore::pin(const std::string& path) {
  const std::lock_guard lock(mutex_);
  pinned_ = path;
}

void CheckpointStore::unpin() { pin(""); }

bool CheckpointStore::is_pinned(const std::string& path) const {
  const std::lock_guard lock(mutex_);
  return path == pinned_;
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
      if (static_cast<int>(steps.size()) > keep_) delete_beyond_limit(steps, newest_path);
    } catch (const Error&) {
      failure = std::current_exception();
    }
    ranks_.tell("checkpoint to verify", "");  // no more
    if (failure) std::rethrow_exception(failure);
    return std::string();
  });
}

// Each node by itself, once every rank has read back what its node holds of the new one.
void CheckpointStore::delete_old_on_nodes(const std::string& newest_path) {
  const auto too_many = ranks_.act("old checkpoints", [&] {
    return std::string(static_cast<int>(find_steps(files_, directory_).size()) > keep_ ? "some" : "");
  });
  if (std::all_of(too_many.begin(), too_many.end(), [](const std::string& said) { return said.empty(); })) return;
  ranks_.act("checkpoint read back", [&] {
    if (const std::string damage = find_damage_here(newest_path); !damage.empty())
      throw IoError("{} It reads back differently from what was written: older ones are kept; check the disk.", damage);
    return std::string();
  });
  verified_.insert(newest_path);
  if (!nodes_.leads(ranks_.rank())) return;
  int kept = 0, kept_verified = 0;
  for (const int64_t step : find_steps(files_, directory_)) {
    const std::string path = directory_ + "/" + step_name(step);
    if (kept < keep_ || kept_verified < std::min(2, keep_)) {
      ++kept;
      kept_verified += verified_.contains(path) ? 1 : 0;
    } else if (!is_pinned(path)) {
      delete_or_warn(path);
    }
  }
}

// In this rank's share of what its node holds.
std::string CheckpointStore::find_damage_here(const std::string& path) const {
  std::vector<int> mates;
  for (int rank = 0; rank < ranks_.size(); ++rank)
    if (nodes_.together(rank, ranks_.rank())) mates.push_back(rank);
  try {
    const FolderPart part = open_folder_part(files_, path);
    size_t turn = 0;
    for (size_t i = 0; i < part.manifest.files.size(); ++i) {
      if (!part.wrong[i].empty() || mates[turn++ % mates.size()] != ranks_.rank()) continue;
      const FileRecord& record = part.manifest.files[i];
      const auto problems =
          read_data_file(files_, path, record, whole_file(record), ReadMode::kStopAtFirstProblem, /*from_disk=*/true);
      if (!problems.empty()) return format("checkpoint {} is corrupt: {}.", path, describe(problems[0]));
    }
    return {};
  } catch (const Error& error) {
    return error.what();
  }
}

void CheckpointStore::delete_beyond_limit(const std::vector<int64_t>& steps, const std::string& newest_path) {
  if (!reads_back(newest_path))
    throw IoError("checkpoint {} reads back differently from what was written. Older ones are kept; check the disk.",
                  newest_path);
  int kept = 0;
  int kept_verified = 0;
  const int want_verified = std::min(2, keep_);
  for (const int64_t step : steps) {
    const std::string path = directory_ + "/" + step_name(step);
    if (kept < keep_ || kept_verified < want_verified) {
      ++kept;
      if (kept_verified < want_verified ? reads_back(path) : verified_.count(path) > 0) ++kept_verified;
      continue;
    }
    if (!is_pinned(path)) delete_or_warn(path);
  }
}

void CheckpointStore::delete_or_warn(const std::string& path) {
  try {
    delete_checkpoint(files_, path);
    verified_.erase(path);
  } catch (const IoError& error) {
    log_warning("An old checkpoint stays: {}", error.what());
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
      const FolderPart part = open_folder_part(files_, info.path);
      const Manifest& manifest = part.manifest;
      info.time = manifest.header.time;
      info.num_files = static_cast<int64_t>(manifest.files.size());
      for (size_t i = 0; i < manifest.files.size(); ++i) {
        if (part.wrong[i].empty()) {
          info.size_bytes += manifest.files[i].size_bytes;
          ++info.num_files_here;
        } else if (manifest.mesh.nodes == 1 && info.why_not.empty()) {
          info.why_not = format("{}: {}. Use another checkpoint.", info.path, part.wrong[i]);
        }
      }
      if (info.why_not.empty() && info.num_files_here == info.num_files && depth == CheckDepth::kEveryByte) {
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
  auto loaded = TierReader(files_, {{"local", directory_}}, directory_, nullptr, ranks_).load_newest(destinations);
  if (loaded && loaded->whole_folder) trust(loaded->path);
  return loaded;
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
    if (files_.rename(path, aside) != 0) {
      if (errno == ENOENT) continue;  // another rank was faster
      throw IoError("{}: cannot be renamed to {} ({}). Move it away by hand.", path, aside, std::strerror(errno));
    }
    log_warning("{} belongs to a course of training that is given up; it is now {}.", path, aside);
    verified_.erase(path);
  }
  if (is_folder(directory_)) sync_folder(files_, directory_);
}

void CheckpointStore::delete_newer_than(int64_t step) {
  for (const int64_t newer : find_steps(files_, directory_))
    if (newer > step && remove(newer))
      log_warning("{}/{} belongs to a course of training that is given up; it is deleted.", directory_,
                  step_name(newer));
}

void CheckpointStore::delete_all() {
  for (const int64_t step : find_steps(files_, directory_)) remove(step);
}

// False: another rank was faster.
bool CheckpointStore::remove(int64_t step) {
  const std::string path = directory_ + "/" + step_name(step);
  const std::string doomed = path + ".tmp-" + random_tag();
  if (files_.rename(path, doomed) != 0) {
    if (errno == ENOENT) return false;
    throw IoError("{}: cannot be renamed to {} ({}). Remove it by hand.", path, doomed, std::strerror(errno));
  }
  remove_tree(files_, doomed);
  verified_.erase(path);
  return true;
}

}  // namespace temper
