// The batch of one training step as the trainer holds it: token ids of every completion and the small arrays that
// losses are computed from, in one order. Built on the train loop's thread from groups that a RolloutSource or a data
// set gave.
#pragma once
#include <cstdint>
#include <vector>

#include "algos/batch.h"
#include "core/rollout_types.h"

namespace temper {

struct StepBatch {
  // One entry a completion that was scored, groups one after the other, as in `loss`.
  struct Sequence {
    const std::vector<int32_t>* prompt;  // the group's, shared by its completions
    const std::vector<int32_t>* completion;
    int64_t group;  // index in `groups`
    int64_t index;  // in the group's completions
  };
  std::vector<RolloutGroup> groups;  // owns the tokens; sorted by serial
  std::vector<Sequence> sequences;   // [B]
  LossBatch loss;

  std::vector<int64_t> all_completions() const;  // 0 … B - 1

  int64_t num_failed = 0;         // completions left out because their reward failed
  int64_t num_groups_failed = 0;  // groups of which nothing is left
  int64_t num_prompt_tokens = 0;  // each prompt once
  int64_t num_completion_tokens = 0;
};

// reward_weights: [K] of the completions' rewards. Without rewards (sft) pass nothing: the batch then has none.
StepBatch build_step_batch(std::vector<RolloutGroup> groups, const std::vector<double>& reward_weights);

}  // namespace temper
