// The tiers of a stage's checkpoints: RAM (tmpfs, which outlives the process), the local disk, a durable folder. A save
// goes to RAM or to the local disk; a finished local one is copied to the durable folder. A resumed run takes the
// newest checkpoint that verifies, wherever it is. RAM and local disk may be each node's own (nodes.h). Every function
// but pin() and unpin() is a collective call.
#pragma once
#include <optional>
#include <string>

#include "checkpoint/checkpoint.h"
#include "checkpoint/nodes.h"
#include "checkpoint/partners.h"
#include "checkpoint/tier_reader.h"

namespace temper {

// Folders of the stage's step_NNNNNN folders; empty: no such tier.
struct TierOptions {
  std::string ram = {};
  std::string local;
  std::string durable = {};
  int keep_local = 2;
  int keep_durable = 2;
  bool replicate = false;  // each node's shards in RAM and on the local disk are also on the next node
};

// What is wrong although a save succeeded; empty: nothing. The training goes on.
struct SaveReport {
  std::string ram;       // why the RAM tier has not got what it should have
  std::string partners;  // what kept a copy of a shard from the partner node
};

// Where a save goes. It is local alone where both are due, unless that fails.
struct SaveTargets {
  bool ram = false;
  bool local = false;
  bool any() const { return ram || local; }
};

class CheckpointTiers {
 public:
  // ranks: of save() and the load functions; copying_ranks: of copy_to_durable(), which may run beside them. Two
  // communicators of the tiers' own; null: this rank alone.
  CheckpointTiers(FileSystem& files, const TierOptions& options, Communicator* ranks = nullptr,
                  Communicator* copying_ranks = nullptr);

  // Makes the folders, writes to each, and removes what crashed writers left. IoError names the key of a folder that
  // cannot be used; ConfigError where the ranks do not see one durable folder.
  void prepare();

  bool has_ram() const { return ram_.has_value(); }
  bool has_durable() const { return durable_.has_value(); }
  bool has_partners() const { return partners_ && partners_->any(); }

  // As CheckpointStore, over all tiers.
  std::optional<LoadedCheckpoint> load_newest(const ChooseDestinations& destinations);
  LoadedCheckpoint load(const std::string& path, const ChooseDestinations& destinations);
  void set_aside_newer_than(int64_t step);

  // IoError: the local disk has not got it.
  SaveReport save(const CheckpointState& state, const SaveTargets& targets);

  // The local checkpoint of this step stays until unpin(), to be copied.
  void pin(int64_t step) { local_.pin(local_path(step)); }
  void unpin() { local_.unpin(); }
  // Verified on its way and read back. FormatError, IoError: the durable folder's older ones are as they were.
  void copy_to_durable(int64_t step) { durable_->adopt(local_path(step)); }

  // Gives the memory back, once the stage's result is safe.
  void release_ram();

 private:
  std::string local_path(int64_t step) const;
  NodeLayout probe(const char* key, const std::string& directory) const;
  void prepare_own(const char* key, CheckpointStore& store, NodeLayout& nodes, std::optional<Partners>& partners);

  FileSystem& files_;
  TierOptions options_;
  Communicator* communicator_;
  Agreement ranks_;
  std::optional<CheckpointStore> ram_;
  CheckpointStore local_;
  std::optional<CheckpointStore> durable_;
  NodeLayout nodes_, ram_nodes_;  // of the local disks; of the folders in memory
  std::optional<Partners> partners_, ram_partners_;
};

}  // namespace temper
