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
#include "trainer/shared_source.h"

namespace temper {

// The functions of the stage's [reward], shared by all its stacks. reward.model must be a directory here.
std::vector<std::unique_ptr<Reward>> make_stage_rewards(const StageConfig& stage, const std::optional<Task>& task);

EngineOptions engine_options(const RolloutSection& rollout);

class RolloutStack {
 public:
  // model, tokenizer and rewards outlive it. Several ranks generate a share each, and all get all groups.
  RolloutStack(const Transformer& model, const Tokenizer& tokenizer, const StageConfig& stage,
               const std::vector<std::unique_ptr<Reward>>& rewards, const Ranks& ranks = {});
  RolloutSource& source();
  double take_scoring_s() { return source_.take_scoring_s(); }

 private:
  Engine engine_;
  InlineRolloutSource source_;
  std::optional<SharedRolloutSource> shared_;
};

}  // namespace temper
