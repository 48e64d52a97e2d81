#include "config/algo_rules.h"

#include <functional>
#include <initializer_list>
#include <map>

#include "core/format.h"

namespace temper {
namespace {

template <class Enum>
bool is_one_of(Enum value, std::initializer_list<Enum> allowed) {
  for (const Enum candidate : allowed)
    if (value == candidate) return true;
  return false;
}

using Est = AdvEstimator;
using Loss = PolicyLoss;

bool scales(const AlgoSection& a) {
  return a.trains_on_rollouts() && is_one_of(a.adv_estimator, {Est::kGrpo, Est::kGrpoPassk, Est::kGdpo});
}
bool scores(const AlgoSection& a) { return a.trains_on_rollouts() && a.adv_estimator != Est::kNone; }
bool has_gae(const AlgoSection& a) { return a.trains_on_rollouts() && a.adv_estimator == Est::kGae; }
bool has_kl(const AlgoSection& a) { return a.kl_coef > 0 && !a.trains_on_pairs(); }
bool weighs(const AlgoSection& a) { return a.is_ratio_loss() || a.policy_loss == Loss::kReinforce; }
bool clips(const AlgoSection& a) {
  return is_one_of(a.policy_loss, {Loss::kClip, Loss::kGspo, Loss::kCispo, Loss::kGmpo, Loss::kClipCov, Loss::kDppoTv});
}
bool distills(const AlgoSection& a) { return a.distill_loss != DistillLoss::kNone && !a.trains_on_pairs(); }

// Keys that are not always used, and when they are.
const std::map<std::string, std::function<bool(const AlgoSection&)>, std::less<>>& use_rules() {
  using A = const AlgoSection&;
  static const std::map<std::string, std::function<bool(A)>, std::less<>> kRules = {
      {"adv_estimator", [](A a) { return a.trains_on_rollouts(); }},
      {"scale_rewards", scales},
      {"advantage_eps", [](A a) { return scales(a) && a.scale_rewards != ScaleRewards::kNone; }},
      {"whiten_advantages", scores},
      {"gamma", [](A a) { return has_gae(a) || (scores(a) && a.adv_estimator == Est::kReinforcePlusPlus); }},
      {"lam", has_gae},
      {"gae_skip_masked", has_gae},
      {"filter_groups", scores},
      {"max_refills", [](A a) { return scores(a) && a.filter_groups; }},
      {"overlong_buffer.len", scores},
      {"overlong_buffer.penalty_factor", [](A a) { return scores(a) && a.overlong_buffer.len > 0; }},
      {"mask_truncated_completions", [](A a) { return a.trains_on_rollouts(); }},
      {"loss_agg_mode", [](A a) { return !a.trains_on_pairs(); }},
      {"clip_ratio_low",
       [](A a) { return clips(a) && !(a.policy_loss == Loss::kCispo && a.cispo_bound == CispoBound::kAbsolute); }},
      {"clip_ratio_high", clips},
      {"clip_ratio_c",
       [](A a) {
         return is_one_of(a.policy_loss, {Loss::kClip, Loss::kDppoTv});
       }},
      {"cispo_bound", [](A a) { return a.policy_loss == Loss::kCispo; }},
      {"sapo_tau_pos", [](A a) { return a.policy_loss == Loss::kSapo; }},
      {"sapo_tau_neg", [](A a) { return a.policy_loss == Loss::kSapo; }},
      {"clip_cov_ratio", [](A a) { return a.policy_loss == Loss::kClipCov; }},
      {"clip_cov_lb", [](A a) { return a.policy_loss == Loss::kClipCov; }},
      {"clip_cov_ub", [](A a) { return a.policy_loss == Loss::kClipCov; }},
      {"kl_cov_ratio", [](A a) { return a.policy_loss == Loss::kKlCov; }},
      {"kl_cov_coef", [](A a) { return a.policy_loss == Loss::kKlCov; }},
      {"kl_coef", [](A a) { return !a.trains_on_pairs(); }},
      {"kl_estimator", has_kl},
      {"kl_clamp",
       [](A a) {
         return has_kl(a) && is_one_of(a.kl_estimator, {KlEstimatorKind::kK3, KlEstimatorKind::kK3Plus});
       }},
      {"kl_placement", has_kl},
      {"kl_ctrl.type", has_kl},
      {"kl_ctrl.target", [](A a) { return has_kl(a) && a.kl_ctrl.type == KlCtrlType::kAdaptive; }},
      {"kl_ctrl.horizon", [](A a) { return has_kl(a) && a.kl_ctrl.type == KlCtrlType::kAdaptive; }},
      {"entropy_coef", [](A a) { return !a.trains_on_pairs(); }},
      {"rollout_is", weighs},
      {"rollout_is_mode", [](A a) { return weighs(a) && a.rollout_is != RolloutIs::kNone; }},
      {"rollout_is_max", [](A a) { return weighs(a) && a.rollout_is != RolloutIs::kNone; }},
      {"rollout_is_min", [](A a) { return weighs(a) && a.rollout_is != RolloutIs::kNone; }},
      {"rollout_rs", [](A a) { return a.trains_on_rollouts(); }},
      {"rollout_rs_denominator", [](A a) { return a.trains_on_rollouts() && !a.rollout_rs.empty(); }},
      {"value_clip", has_gae},
      {"vf_coef", has_gae},
      {"distill_coef", weighs},
      {"distill_discount", [](A a) { return weighs(a) && a.distill_coef > 0; }},
      {"distill_loss", [](A a) { return !a.trains_on_pairs(); }},
      {"distill_loss_coef", distills},
      {"distill_beta", [](A a) { return a.distill_loss == DistillLoss::kJsd; }},
      {"distill_temperature", distills},
      {"distill_top_k", distills},
      {"dpo_beta",
       [](A a) {
         return is_one_of(a.policy_loss, {Loss::kDpo, Loss::kIpo});
       }},
      {"label_smoothing", [](A a) { return a.policy_loss == Loss::kDpo; }},
      {"early_stop_kl", [](A a) { return a.is_ratio_loss(); }},
  };
  return kRules;
}

}  // namespace

bool AlgoSection::whitens() const {
  return whiten_advantages.value_or(
      is_one_of(adv_estimator, {Est::kGae, Est::kReinforcePlusPlus, Est::kReinforcePlusPlusBaseline, Est::kGdpo}));
}

bool AlgoSection::trains_on_rollouts() const {
  return !is_one_of(policy_loss, {Loss::kSft, Loss::kDpo, Loss::kIpo, Loss::kRewardModel});
}

bool AlgoSection::trains_on_pairs() const {
  return is_one_of(policy_loss, {Loss::kDpo, Loss::kIpo, Loss::kRewardModel});
}

bool AlgoSection::is_ratio_loss() const { return policy_loss <= Loss::kDppoTv; }

bool AlgoSection::compares_group() const {
  return trains_on_rollouts() && is_one_of(adv_estimator, {Est::kGrpo, Est::kRloo, Est::kReinforcePlusPlusBaseline,
                                                           Est::kOpo, Est::kGpg, Est::kGrpoPassk, Est::kGdpo});
}

bool AlgoSection::needs_reference() const { return has_kl(*this) || is_one_of(policy_loss, {Loss::kDpo, Loss::kIpo}); }

bool AlgoSection::needs_teacher() const { return (distill_coef > 0 && weighs(*this)) || distills(*this); }

RolloutIs correction_of_mismatch(const StageConfig& stage) {
  const bool alike =
      stage.rollout.dtype == RolloutDtype::kAuto || to_string(stage.rollout.dtype) == to_string(stage.run.dtype);
  const bool on_policy = !stage.uses_hub() || stage.async.max_staleness == 0;
  if ((alike && on_policy) || !weighs(stage.algo)) return RolloutIs::kNone;
  return stage.algo.policy_loss == Loss::kGmpo ? RolloutIs::kSequence : RolloutIs::kToken;
}

AlgoSection algo_preset(Preset preset) {
  AlgoSection a;
  a.preset = preset;
  const auto estimator = [&a](AdvEstimator value) {
    a.adv_estimator = value;
    a.loss_agg_mode = LossAggMode::kTokenMean;
  };
  const auto kl_in_reward = [&a] {
    a.kl_placement = KlPlacement::kReward;
    a.kl_estimator = KlEstimatorKind::kK1;
  };
  switch (preset) {
    case Preset::kGrpo:
      break;
    case Preset::kDapo:
      a.clip_ratio_high = 0.28;
      a.loss_agg_mode = LossAggMode::kTokenMean;
      a.filter_groups = true;
      break;
    case Preset::kDrGrpo:
      a.scale_rewards = ScaleRewards::kNone;
      a.loss_agg_mode = LossAggMode::kSeqMeanTokenSumNorm;
      break;
    case Preset::kGspo:
      a.policy_loss = Loss::kGspo;
      a.clip_ratio_low = 3e-4;
      a.clip_ratio_high = 4e-4;
      break;
    case Preset::kCispo:
      a.policy_loss = Loss::kCispo;
      a.loss_agg_mode = LossAggMode::kTokenMean;
      a.clip_ratio_low = 10;
      a.clip_ratio_high = 0.2;
      break;
    case Preset::kSapo:
      a.policy_loss = Loss::kSapo;
      break;
    case Preset::kGmpo:
      a.policy_loss = Loss::kGmpo;
      a.clip_ratio_low = 0.4;
      a.clip_ratio_high = 0.4;
      break;
    case Preset::kRloo:
      estimator(Est::kRloo), kl_in_reward();
      break;
    case Preset::kRemax:
      estimator(Est::kRemax), kl_in_reward();
      break;
    case Preset::kReinforcePlusPlus:
      estimator(Est::kReinforcePlusPlus), kl_in_reward();
      break;
    case Preset::kReinforcePlusPlusBaseline:
      estimator(Est::kReinforcePlusPlusBaseline);
      a.kl_estimator = KlEstimatorKind::kK2;
      break;
    case Preset::kOpo:
      estimator(Est::kOpo);
      break;
    case Preset::kGdpo:
      estimator(Est::kGdpo);
      break;
    case Preset::kGpg:
      estimator(Est::kGpg);
      a.policy_loss = Loss::kReinforce;
      break;
    case Preset::kPpo:
      estimator(Est::kGae), kl_in_reward();
      break;
    case Preset::kDistill:
      estimator(Est::kNone);
      a.distill_coef = 1;
      break;
    case Preset::kGkd:
      estimator(Est::kNone);
      a.policy_loss = Loss::kNone;
      a.distill_loss = DistillLoss::kJsd;
      break;
    case Preset::kSft:
      estimator(Est::kNone);
      a.policy_loss = Loss::kSft;
      break;
    case Preset::kDpo:
      a.adv_estimator = Est::kNone;
      a.policy_loss = Loss::kDpo;
      break;
    case Preset::kRewardModel:
      a.adv_estimator = Est::kNone;
      a.policy_loss = Loss::kRewardModel;
      break;
  }
  return a;
}

bool is_used(std::string_view key, const AlgoSection& algo) {
  if (!key.starts_with("algo.")) return true;
  const auto rule = use_rules().find(key.substr(5));
  return rule == use_rules().end() || rule->second(algo);
}

std::vector<std::string> algo_conflicts(const AlgoSection& a) {
  std::vector<std::string> conflicts;
  if (a.policy_loss == Loss::kGmpo && a.rollout_is == RolloutIs::kToken)
    conflicts.push_back(
        "algo.rollout_is = token cannot go with algo.policy_loss = gmpo, whose tokens share one ratio."
        " Set algo.rollout_is to sequence or none.");
  if (a.adv_estimator == Est::kGdpo && a.overlong_buffer.len > 0)
    conflicts.push_back(
        format("algo.overlong_buffer.len = {} cannot go with algo.adv_estimator = gdpo, which normalises each"
               " reward alone. Set algo.overlong_buffer.len to 0 and use the length reward.",
               a.overlong_buffer.len));
  if (a.adv_estimator == Est::kGdpo && a.kl_coef > 0 && a.kl_placement == KlPlacement::kReward)
    conflicts.push_back(
        "algo.kl_placement = reward cannot go with algo.adv_estimator = gdpo, which normalises each reward"
        " alone. Set algo.kl_placement to loss.");
  if (a.distill_top_k > 0 && a.distill_loss != DistillLoss::kForwardKl)
    conflicts.push_back(
        format("algo.distill_top_k = {} needs algo.distill_loss = forward_kl (it is {}). Set one of the two.",
               a.distill_top_k, to_string(a.distill_loss)));
  if (a.rollout_is_min > a.rollout_is_max)
    conflicts.push_back(
        format("algo.rollout_is_min = {} exceeds algo.rollout_is_max = {}. Lower the one or raise the other.",
               a.rollout_is_min, a.rollout_is_max));
  return conflicts;
}

}  // namespace temper
