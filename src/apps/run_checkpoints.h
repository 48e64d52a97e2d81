// Where a run's checkpoints are, for `temper status` and `temper checkpoint ls`: of each stage, tier by tier, as its
// status.json says. Reads alone.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "observe/run_status.h"

namespace temper {

struct TierCheckpoints {
  std::string stage;
  std::string tier;  // "ram", "local", "durable"
  std::string folder;
  std::vector<CheckpointInfo> all;  // newest first
  int64_t num_unfinished = 0;       // under way, or left by a process that died

  const CheckpointInfo* newest() const;             // that can be resumed from; null: none
  std::vector<std::string> newer_unusable() const;  // what is wrong with those before it
};

// In the order of the run's stages where it is known; of a tier whose folder is not there nothing.
std::vector<TierCheckpoints> find_run_checkpoints(const std::string& run_dir, const std::optional<RunStatus>& status);

// By how many steps the tier's newest is behind the newest of any tier of the stage.
int64_t lag_steps(const TierCheckpoints& tier, const std::vector<TierCheckpoints>& all);

}  // namespace temper
