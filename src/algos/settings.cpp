#include "algos/settings.h"

#include <algorithm>

#include "core/error.h"

namespace temper {

std::vector<ArrayNeed> needed_arrays(const AlgoSection& settings) {
  std::vector<ArrayNeed> needs;
  const auto need = [&](bool condition, std::string_view key, const auto& value, auto... arrays) {
    if (condition) (needs.push_back({arrays, format("algo.{} = {}", key, value)}), ...);
  };
  const PolicyLoss loss = settings.policy_loss;
  const std::string_view loss_name = to_string(loss), estimator = to_string(settings.adv_estimator);
  const bool on_tokens = !is_preference_loss(loss);
  need(loss != PolicyLoss::kNone && loss != PolicyLoss::kRewardModel, "policy_loss", loss_name, "policy_logprobs");
  need(loss == PolicyLoss::kDpo || loss == PolicyLoss::kIpo, "policy_loss", loss_name, "ref_logprobs");
  need(loss == PolicyLoss::kRewardModel, "policy_loss", loss_name, "values");
  need(settings.is_ratio_loss(), "policy_loss", loss_name, "old_logprobs");
  need(settings.adv_estimator == AdvEstimator::kGae, "adv_estimator", estimator, "values");
  need(settings.adv_estimator == AdvEstimator::kRemax, "adv_estimator", estimator, "baseline_reward");
  need(settings.rollout_is != RolloutIs::kNone, "rollout_is", to_string(settings.rollout_is), "old_logprobs",
       "behavior_logprobs");
  need(!settings.rollout_rs.empty(), "rollout_rs",
       settings.rollout_rs.empty() ? "" : settings.rollout_rs.begin()->first, "old_logprobs", "behavior_logprobs");
  need(settings.kl_coef > 0 && (on_tokens || kl_in_reward(settings)), "kl_coef", settings.kl_coef, "ref_logprobs");
  need(settings.kl_coef > 0 && on_tokens && !kl_in_reward(settings), "kl_coef", settings.kl_coef, "policy_logprobs");
  need(kl_in_reward(settings), "kl_placement", "reward", "old_logprobs");
  need(settings.distill_coef > 0, "distill_coef", settings.distill_coef, "old_logprobs", "teacher_logprobs");
  need(settings.entropy_coef != 0, "entropy_coef", settings.entropy_coef, "entropies");
  need(settings.distill_loss != DistillLoss::kNone, "distill_loss", to_string(settings.distill_loss), "policy_logits",
       "teacher_logits");
  return needs;
}

bool needs_array(const AlgoSection& settings, std::string_view array) {
  const std::vector<ArrayNeed> needs = needed_arrays(settings);
  return std::any_of(needs.begin(), needs.end(), [&](const ArrayNeed& need) { return need.array == array; });
}

bool needs_old_before_loss(const AlgoSection& settings) {
  return !settings.rollout_rs.empty() || kl_in_reward(settings) || settings.distill_coef > 0 ||
         settings.num_epochs > 1 || settings.num_minibatches > 1;
}

void check_context(const AlgoSection& settings, const AlgoContext& context) {
  const auto needs_length = [&](std::string_view key, const auto& value) {
    if (context.max_completion_length <= 0)
      throw ConfigError("rollout.max_completion_length is missing: algo.{} = {} needs it. Give it, in tokens.", key,
                        value);
  };
  if (settings.loss_agg_mode == LossAggMode::kSeqMeanTokenSumNorm)
    needs_length("loss_agg_mode", to_string(settings.loss_agg_mode));
  if (settings.overlong_buffer.len > 0) needs_length("overlong_buffer.len", settings.overlong_buffer.len);
}

}  // namespace temper
