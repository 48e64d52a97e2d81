// Engine, rewards and the in-process source of rollouts over one model: for training, evaluation and `temper eval`.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/task.h"
#include "data/tokenizer.h"
#include "rollout/engine.h"
#include "rollout/inline_source.h"
#include "rollout/reward.h"

namespace temper {

// The functions of the stage's [reward], shared by all its stacks. reward.model must be a directory here.
std::vector<std::unique_ptr<Reward>> make_stage_rewards(const StageConfig& stage, const std::optional<Task>& task);

class RolloutStack {
 public:
  // model, tokenizer and rewards outlive it.
  RolloutStack(const Transformer& model, const Tokenizer& tokenizer, const StageConfig& stage,
               const std::vector<std::unique_ptr<Reward>>& rewards);
  RolloutSource& source() { return source_; }
  double take_scoring_s() { return source_.take_scoring_s(); }

 private:
  Engine engine_;
  InlineRolloutSource source_;
};

}  // namespace temper
