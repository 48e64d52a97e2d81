// Saves and restores the complete state of a stage: folders step_NNNNNN below RUN/checkpoints/STAGE, each written once,
// committed by rename, verified to the last bit when read. Format: docs/checkpoint_format.md. The ranks of a world save
// and load together: each writes and reads what is its own. One thread a rank; reading and hashing use a second one
// inside.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <string>
#include <vector>

#include "checkpoint/agreement.h"
#include "checkpoint/file_system.h"
#include "checkpoint/nodes.h"

namespace temper {

class Partners;

// A tensor or, where ranks share it, the part that this one holds: contiguous, on the CPU; may be a view of a larger
// buffer. Names: "model/…", "critic/…", "optim/exp_avg/…". Several parts of one tensor are an entry each; a rank that
// holds nothing of it has an entry without elements, or to save none.
struct TensorEntry {
  std::string name;
  at::Tensor tensor;
  std::vector<int64_t> whole_shape = {};  // of what `tensor` is a part of; empty: it is whole
  std::vector<int64_t> start = {};        // of the part, in the whole
};

// The ranks that wrote it, for people: no reader depends on it.
struct Mesh {
  int64_t replicas = 1;
  int64_t shard = 1;
  int64_t tensor_parallel = 1;
  int64_t nodes = 1;  // whose own disks hold the files; more than one: a folder may lack some
};

// All of a checkpoint but its tensors.
struct CheckpointHeader {
  std::string run;
  std::string stage;
  int64_t step = 0;  // within the stage
  int64_t policy_version = 0;
  int64_t epoch = 0;  // how often the run was started before: tells the writers of one run apart
  double time = 0;    // seconds since the Unix epoch; filled by save()
  std::string config_toml;
  std::string model_json;
  std::string data_hash;
  // Small named states, as JSON text or any bytes: rng, cursor, schedule, ledger, kl_controller, unconsumed_groups,
  // metrics.
  std::map<std::string, std::string> blobs;
};

// What a rank saves. Together the ranks' entries hold each element of each tensor exactly once.
struct CheckpointState {
  CheckpointHeader header;  // the first rank's counts, as its mesh and its order of the tensors do
  std::vector<TensorEntry> tensors;
  Mesh mesh = {};
};

struct LoadedCheckpoint {
  std::string path;
  CheckpointHeader header;
  std::string tier = {};      // of `path`, where several were looked through
  bool whole_folder = false;  // every file was read from the first folder that has it, and none lacks any
};

struct CheckpointInfo {
  std::string path;
  int64_t step = 0;
  bool good = false;    // as far as was looked
  std::string why_not;  // if not good
  double time = 0;
  int64_t size_bytes = 0;
  // A node's folder may lack files that other nodes have.
  int64_t num_files = 0, num_files_here = 0;
};

enum class CheckDepth { kManifest, kEveryByte };

// Given the verified header, before the tensors are read: the caller checks that the checkpoint fits (ConfigError
// passes through), prepares its state and says where each tensor goes, or the parts of it that this rank wants. Makes
// no collective calls.
using ChooseDestinations = std::function<std::vector<TensorEntry>(const CheckpointHeader&)>;

// Reads one checkpoint: verifies every byte of every file while the tensors go straight into their destinations.
// Destinations and checkpoint must hold the same names, dtypes and shapes (ConfigError). FormatError if anything is
// corrupt, missing or of a newer format version; the destinations' contents are undefined then.
LoadedCheckpoint load_checkpoint(FileSystem& files, const std::string& path, const ChooseDestinations& destinations);

// The header alone: manifest and file sizes verified, tensors not read.
CheckpointHeader read_checkpoint_header(FileSystem& files, const std::string& path);

class CheckpointStore {
 public:
  // directory: RUN/checkpoints/STAGE, made when needed, one file system for all ranks. keep >= 1: how many checkpoints
  // stay. ranks: those that save and load together, a communicator of the store's own; null: this one alone. save(),
  // adopt() and the load functions are collective calls and throw the same on all ranks; what the others change is for
  // the first rank alone.
  CheckpointStore(FileSystem& files, std::string directory, int keep, Communicator* ranks = nullptr);

  // From here on the folder is the node's own where the ranks see different ones: it gets the node's shards, and with
  // partners, which outlive the store, a neighbour's. What the first rank did before, the first of each node does.
  void spread_over(const NodeLayout& nodes, const Partners* partners);
  // Of the last save: what kept a copy from its partner. Empty: all were acknowledged, or there are no partners.
  const std::string& copy_failure() const { return copy_failure_; }

  // Removes the unfinished folders of crashed writers. REQUIRES: the run directory is locked by this process.
  void remove_stale();

  // Returns the folder. Then older ones beyond `keep` go, if the new one reads back verified (the ranks share its files
  // out) and at least two verified ones remain (one where keep is 1). IoError: earlier checkpoints are intact, and no
  // half of this one appears under a final name.
  std::string save(const CheckpointState& state);

  // The same with a copy of a checkpoint that lies elsewhere, verified on its way and read back.
  std::string adopt(const std::string& source);

  // The folder is not deleted before unpin(): it is being copied. Any thread.
  void pin(const std::string& path);
  void unpin();

  std::vector<CheckpointInfo> list(CheckDepth depth = CheckDepth::kManifest) const;  // newest first

  // The newest that verifies; the log says which, and why not the newer ones. Nothing if there is no checkpoint at all;
  // FormatError if there are some and none verifies. Where ranks see different folders, see tier_reader.h.
  std::optional<LoadedCheckpoint> load_newest(const ChooseDestinations& destinations);
  LoadedCheckpoint load(const std::string& path, const ChooseDestinations& destinations);

  // After resuming from an older checkpoint by name, or starting afresh: those of later steps belong to a course of
  // training that is given up. They are renamed to step_N.aside-TAG, so that `resume = auto` does not find them.
  // Several ranks may do it at once.
  void set_aside_newer_than(int64_t step);
  // The same where space is dear: they are deleted.
  void delete_newer_than(int64_t step);
  void delete_all();

  // Of a checkpoint that was read whole from its folder here: it counts as verified when older ones are deleted.
  void trust(const std::string& path) { verified_.insert(path); }

  const std::string& directory() const { return directory_; }

 private:
  bool remove(int64_t step);
  void finish_save(const std::string& path, int64_t step);
  void delete_old(const std::string& newest_path);
  void delete_old_on_nodes(const std::string& newest_path);
  std::string find_damage_here(const std::string& path) const;
  void delete_beyond_limit(const std::vector<int64_t>& steps, const std::string& newest_path);
  bool reads_back(const std::string& path);
  void delete_or_warn(const std::string& path);
  bool verify_share();
  bool is_pinned(const std::string& path) const;
  std::string find_damage(const std::string& path) const;

  FileSystem& files_;
  std::string directory_;
  int keep_;
  Agreement ranks_;
  NodeLayout nodes_;
  const Partners* partners_ = nullptr;
  std::string copy_failure_;
  std::set<std::string> verified_;  // folders read back whole by this process
  mutable std::mutex mutex_;
  std::string pinned_;  // guarded by mutex_
};

}  // namespace temper
