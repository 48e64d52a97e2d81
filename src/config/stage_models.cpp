#include "config/stage_models.h"

#include <algorithm>

namespace temper {

std::optional<std::string> stage_reference(std::string_view path) {
  constexpr std::string_view kPrefix = "stage:";
  if (!path.starts_with(kPrefix)) return std::nullopt;
  return std::string(path.substr(kPrefix.size()));
}

std::optional<size_t> stage_index(const Config& config, std::string_view name) {
  for (size_t i = 0; i < config.stages.size(); ++i)
    if (config.stages[i].name == name) return i;
  return std::nullopt;
}

int64_t start_stage(const Config& config, size_t stage) {
  const StageConfig& started = config.stages.at(stage);
  if (started.own_model) return -1;
  if (const auto name = stage_reference(started.model.path))
    if (const auto index = stage_index(config, *name)) return static_cast<int64_t>(*index);
  for (size_t i = stage; i-- > 0;)
    if (!makes_reward_model(config.stages[i])) return static_cast<int64_t>(i);
  return -1;
}

const ModelSection& origin_model(const Config& config, size_t stage) {
  for (int64_t before; (before = start_stage(config, stage)) >= 0;) stage = static_cast<size_t>(before);
  return config.stages[stage].model;
}

bool makes_reward_model(const StageConfig& stage) { return stage.algo.policy_loss == PolicyLoss::kRewardModel; }

bool evaluates(const StageConfig& stage) {
  // Held-out pairs are compared, not answered.
  const bool holds_out = stage.data.held_out_share > 0 && !stage.algo.trains_on_pairs();
  const bool has_prompts = !stage.data.eval_path.empty() || !stage.data.task.empty() || holds_out;
  return stage.eval.num_prompts > 0 && has_prompts && !makes_reward_model(stage);
}

bool uses_reward_model(const StageConfig& stage) {
  const std::vector<std::string>& functions = stage.reward.functions;
  return std::find(functions.begin(), functions.end(), "model") != functions.end() &&
         (stage.algo.trains_on_rollouts() || evaluates(stage));
}

std::vector<ModelUse> used_models(const StageConfig& stage) {
  std::vector<ModelUse> uses;
  const auto add = [&uses](ModelRole role, const char* key, const std::string& path, bool needed) {
    if (needed && !path.empty()) uses.push_back({role, key, path});
  };
  const bool named_start = stage.own_model || stage_reference(stage.model.path);
  add(ModelRole::kStart, "model.path", stage.model.path, named_start);
  add(ModelRole::kReference, "model.reference", stage.model.reference, stage.algo.needs_reference());
  add(ModelRole::kTeacher, "model.teacher", stage.model.teacher, stage.algo.needs_teacher());
  add(ModelRole::kCritic, "critic.path", stage.critic.path, stage.algo.needs_critic());
  add(ModelRole::kReward, "reward.model", stage.reward.model, uses_reward_model(stage));
  return uses;
}

}  // namespace temper
