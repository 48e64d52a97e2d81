#include "checkpoint/checkpoint.h"

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <unordered_map>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/folder.h"
#include "core/clock.h"
#include "core/log.h"

namespace temper {
namespace {

std::vector<int64_t> shape_of(const at::Tensor& tensor) { return tensor.sizes().vec(); }

std::string show(const std::vector<int64_t>& shape) { return "[" + join(shape) + "]"; }

constexpr char kWrongModelFix[] =
    "Point [model] path at the model it was trained from, or start afresh with --checkpoint.resume=never.";

void check_storable(const TensorEntry& entry) {
  TEMPER_CHECK(entry.tensor.defined() && entry.tensor.device().is_cpu() && entry.tensor.is_contiguous() &&
                   entry.tensor.layout() == at::kStrided,
               "tensor {} of a checkpoint must be dense, contiguous and on the CPU", entry.name);
}

void save_folder(FileSystem& files, const std::string& path, const CheckpointHeader& header,
                 const std::vector<TensorEntry>& entries) {
  std::vector<TensorRecord> tensors;
  std::vector<std::vector<const char*>> data;
  for (const TensorEntry& entry : entries) {
    check_storable(entry);
    const std::string fault = find_name_fault(entry.name);
    if (!fault.empty()) throw ConfigError("Tensor \"{}\" cannot be saved: its name {}. Rename it.", entry.name, fault);
    TensorRecord tensor{entry.name, entry.tensor.scalar_type(), shape_of(entry.tensor), {}};
    data.emplace_back();
    if (entry.tensor.numel() > 0) {
      tensor.boxes.push_back({0, 0, std::vector<int64_t>(tensor.shape.size(), 0), tensor.shape});
      data.back().push_back(static_cast<const char*>(entry.tensor.const_data_ptr()));
    }
    tensors.push_back(std::move(tensor));
  }
  write_checkpoint_folder(files, path, header, Mesh{}, std::move(tensors), data, 1);
}

// Both sides must name the same tensors with the same types and shapes; then where each goes.
std::vector<WantedBox> match_destinations(const std::string& path, const Manifest& manifest,
                                          const std::vector<TensorEntry>& destinations) {
  std::unordered_map<std::string, const TensorEntry*> by_name;
  for (const TensorEntry& entry : destinations) {
    check_storable(entry);
    TEMPER_CHECK(by_name.emplace(entry.name, &entry).second, "tensor {} has two destinations", entry.name);
  }
  std::vector<WantedBox> wanted;
  for (const TensorRecord& tensor : manifest.tensors) {
    const auto found = by_name.find(tensor.name);
    if (found == by_name.end())
      throw ConfigError("checkpoint {}: tensor {} {} has no place in this run. {}", path, tensor.name,
                        show(tensor.shape), kWrongModelFix);
    const at::Tensor& destination = found->second->tensor;
    const auto shape = shape_of(destination);
    if (shape != tensor.shape) {
      const bool only_rows = shape.size() == tensor.shape.size() && !shape.empty() &&
                             std::equal(shape.begin() + 1, shape.end(), tensor.shape.begin() + 1);
      if (only_rows)
        throw ConfigError("checkpoint {}: tensor {} has {} rows, this model has {}. {}", path, tensor.name,
                          tensor.shape[0], shape[0], kWrongModelFix);
      throw ConfigError("checkpoint {}: tensor {} has shape {}, this model has {}. {}", path, tensor.name,
                        show(tensor.shape), show(shape), kWrongModelFix);
    }
    if (destination.scalar_type() != tensor.dtype)
      throw ConfigError("checkpoint {}: tensor {} holds {}, this run wants {}. {}", path, tensor.name,
                        dtype_name(tensor.dtype), dtype_name(destination.scalar_type()), kWrongModelFix);
    if (destination.numel() > 0)
      wanted.push_back(
          {&tensor, std::vector<int64_t>(shape.size(), 0), shape, static_cast<char*>(destination.data_ptr())});
    by_name.erase(found);
  }
  if (!by_name.empty())
    throw ConfigError("checkpoint {}: tensor {} {} of this run is not in it ({} are missing). {}", path,
                      by_name.begin()->first, show(shape_of(by_name.begin()->second->tensor)), by_name.size(),
                      kWrongModelFix);
  return wanted;
}

std::vector<int64_t> find_steps(FileSystem& files, const std::string& directory) {  // newest first
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(files, directory))
    if (const int64_t step = parse_step_name(name); step >= 0 && is_folder(directory + "/" + name))
      steps.push_back(step);
  std::sort(steps.rbegin(), steps.rend());
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
  const Manifest manifest = open_checkpoint_folder(files, path);
  const auto wanted = match_destinations(path, manifest, destinations(manifest.header));
  const auto problems = read_checkpoint_files(files, path, manifest, plan_reads(manifest, wanted),
                                              ReadScope::kEverything, ReadMode::kStopAtFirstProblem);
  if (!problems.empty())
    throw FormatError(
        "checkpoint {} is corrupt: {}. Use another one; `temper checkpoint verify` shows which are whole.", path,
        describe(problems[0]));
  return {path, manifest.header};
}

CheckpointHeader read_checkpoint_header(FileSystem& files, const std::string& path) {
  return open_checkpoint_folder(files, path).header;
}

CheckpointStore::CheckpointStore(FileSystem& files, std::string directory, int keep_local)
    : files_(files), directory_(std::move(directory)), keep_local_(keep_local) {
  TEMPER_CHECK(keep_local >= 2, "keep_local is {}, at least 2 are kept", keep_local);
}

void CheckpointStore::remove_stale() { remove_unfinished(files_, directory_); }

std::string CheckpointStore::save(const CheckpointState& state) {
  CheckpointHeader header = state.header;
  header.time = seconds_since_epoch();
  const std::string path = directory_ + "/" + step_name(header.step);
  verified_.erase(path);
  try {
    save_folder(files_, path, header, state.tensors);
  } catch (const SyncError& error) {
    // The kernel may have dropped the pages it could not write, so a second fsync could lie: all is written anew.
    log_warning("{} The checkpoint is written once more, under a new name.", error.what());
    save_folder(files_, path, header, state.tensors);
  }
  write_latest(files_, directory_, header.step);
  delete_old(path);
  return path;
}

void CheckpointStore::delete_old(const std::string& newest_path) {
  const auto steps = find_steps(files_, directory_);
  if (static_cast<int>(steps.size()) <= keep_local_) return;
  const auto reads_back = [&](const std::string& path) {
    if (verified_.count(path) > 0) return true;
    try {
      const Manifest manifest = open_checkpoint_folder(files_, path);
      const auto problems =
          read_checkpoint_files(files_, path, manifest, {}, ReadScope::kEverything, ReadMode::kStopAtFirstProblem,
                                /*from_disk=*/true);
      if (problems.empty())
        verified_.insert(path);
      else
        log_warning("checkpoint {} is corrupt: {}.", path, describe(problems[0]));
      return problems.empty();
    } catch (const Error& error) {
      log_warning("{}", error.what());
      return false;
    }
  };
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
  for (const int64_t step : find_steps(files_, directory_)) {
    const std::string path = directory_ + "/" + step_name(step);
    try {
      LoadedCheckpoint loaded = load(path, destinations);
      if (!refused.empty())
        log_warning("Resuming from {}, not from a newer checkpoint: {} newer did not verify, see above.", path,
                    refused.size());
      return loaded;
    } catch (const FormatError& error) {
      refused.push_back(error.what());
    } catch (const IoError& error) {
      refused.push_back(error.what());
    }
    log_warning("{}", refused.back());
  }
  if (refused.empty()) return std::nullopt;
  throw FormatError(
      "{}: none of its {} checkpoints verifies. The newest: {} Start afresh with --checkpoint.resume=never.",
      directory_, refused.size(), refused[0]);
}

LoadedCheckpoint CheckpointStore::load(const std::string& path, const ChooseDestinations& destinations) {
  LoadedCheckpoint loaded = load_checkpoint(files_, path, destinations);
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
