#include "algos/algorithm.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <optional>

#include "algos/advantage.h"
#include "algos/aggregate.h"
#include "algos/cov_losses.h"
#include "algos/kl.h"
#include "algos/loss_metrics.h"
#include "algos/mismatch.h"
#include "algos/policy_loss.h"
#include "algos/preference.h"
#include "algos/reward_metrics.h"
#include "algos/statistics.h"
#include "algos/value_loss.h"
#include "core/error.h"

namespace temper {
namespace {

at::Tensor bool_tensor(const std::vector<uint8_t>& values) { return at::tensor(values, at::kByte).to(at::kBool); }

// The tables of estimators and losses behind the seam.
class TableAlgorithm : public Algorithm {
 public:
  // No row of losses where the loss compares pairs.
  TableAlgorithm(const AlgoSection& settings, const AlgoContext& context, const EstimatorRow& estimator,
                 const std::optional<PolicyLossRow>& loss)
      : settings_(settings), context_(context), estimator_(estimator), loss_(loss), kl_coef_(settings.kl_coef) {
    check_context(settings_, context_);
  }

  const AlgoSection& settings() const override { return settings_; }
  double kl_coef() const override { return kl_coef_; }
  void set_kl_coef(double value) override { kl_coef_ = value; }

  AdvantageReport advantages(LossBatch& batch) const override;
  int64_t num_filtered(const LossBatch& batch) const override {
    return compute_scores(batch, settings_, context_).groups_filtered;
  }
  bool needs_prepare() const override { return loss_ && loss_->selects; }
  void prepare(LossBatch& mini_batch, const at::Tensor& policy_logprobs, SplitMix64* rng) const override {
    TEMPER_CHECK(mini_batch.kept.defined(), "prepare before advantages");
    if (needs_prepare()) mini_batch.selected = select_by_covariance(mini_batch, policy_logprobs, settings_, rng);
  }
  LossResult loss(const PolicyOutput& output, const LossBatch& micro_batch, const GlobalCounts& counts) const override;

 private:
  const AlgoSection settings_;
  const AlgoContext context_;
  const EstimatorRow estimator_;
  const std::optional<PolicyLossRow> loss_;
  double kl_coef_;
};

AdvantageReport TableAlgorithm::advantages(LossBatch& batch) const {
  at::NoGradGuard no_grad;
  batch.check();
  AdvantageReport report;
  Scores scores = compute_scores(batch, settings_, context_);
  add_reward_metrics(report, scores, batch, settings_, context_);

  const bool reports_kl = settings_.kl_placement == KlPlacement::kReward && !is_preference_loss(settings_.policy_loss);
  if ((reports_kl || kl_in_reward(settings_)) && batch.ref_logprobs.defined() && batch.old_logprobs.defined())
    add_kl_metrics(report, scores, subtract_kl(scores, batch, settings_, kl_coef_));

  EstimatorInput input{settings_, scores, {}, context_.reward_weights, {}, to_doubles(batch.old_values)};
  input.rewards = to_doubles(batch.rewards);
  input.baseline_rewards = to_doubles(batch.baseline_rewards);
  EstimatorOutput output = estimator_.compute(input);
  if (settings_.whitens()) whiten(output.advantages, scores);
  const std::vector<double> old = to_doubles(batch.old_logprobs), teacher = to_doubles(batch.teacher_logprobs);
  TEMPER_CHECK(settings_.distill_coef == 0 || (batch.old_logprobs.defined() && batch.teacher_logprobs.defined()),
               "distill_coef needs old_logprobs and teacher_logprobs");
  if (!old.empty() && !teacher.empty())
    report.metrics.emplace_back("teacher_kl", add_distillation(output.advantages, scores, old, teacher, settings_));
  if (settings_.adv_estimator == AdvEstimator::kGae)
    add_explained_variance(report, scores, output.returns, input.old_values);

  batch.stays = bool_tensor(scores.stays);
  batch.counted = bool_tensor(scores.counted);
  batch.kept = batch.counted;
  batch.advantages = at::tensor(output.advantages, at::kDouble);
  if (!output.returns.empty()) batch.returns = at::tensor(output.returns, at::kDouble);
  if (batch.old_logprobs.defined() && batch.behavior_logprobs.defined()) {
    const Segments segments(batch.lengths, at::kCPU);
    if (settings_.rollout_is != RolloutIs::kNone)
      batch.is_weights =
          importance_weights(batch.old_logprobs, batch.behavior_logprobs, batch.counted, segments, settings_);
    if (!settings_.rollout_rs.empty())
      batch.kept = batch.counted &
                   passes_rejection(batch.old_logprobs, batch.behavior_logprobs, batch.counted, segments, settings_);
  } else {
    TEMPER_CHECK(settings_.rollout_rs.empty(), "rollout_rs needs old_logprobs and behavior_logprobs");
  }
  return report;
}

// loss = policy_loss + kl_coef agg(k) - entropy_coef agg(entropy) + vf_coef value_loss + distill_loss_coef
// distill_loss.
LossResult TableAlgorithm::loss(const PolicyOutput& output, const LossBatch& batch, const GlobalCounts& counts) const {
  batch.check();
  TEMPER_CHECK(batch.kept.defined() && batch.advantages.defined(), "loss before advantages");
  const int64_t n = batch.num_tokens();
  for (const at::Tensor* array : {&output.logprobs, &output.entropies, &output.values, &output.divergence})
    TEMPER_CHECK(!array->defined() || (array->dim() == 1 && array->size(0) == n), "an output of the policy is not [{}]",
                 n);
  const at::ScalarType dtype = batch.advantages.scalar_type();
  const Segments segments(batch.lengths, batch.kept.device());
  const at::Tensor zeros = at::zeros_like(batch.advantages);
  const auto only = [&](const at::Tensor& x, const at::Tensor& mask) { return at::where(mask, x, zeros); };

  // Weights of agg over c, and over m for the critic.
  const bool all = settings_.rollout_rs_denominator == RsDenominator::kAll;
  const at::Tensor weights = aggregation_weights(batch.kept, all ? batch.counted : batch.kept,
                                                 all ? counts.counted_tokens : counts.kept_tokens, segments, counts,
                                                 settings_, context_, dtype);

  LossMetrics metrics(batch);
  at::Tensor total = at::zeros({}, batch.advantages.options());
  at::Tensor policy_loss = total, value_part = total, kl_part = total, distill_part = total;

  const at::Tensor old = batch.old_logprobs.defined() ? batch.old_logprobs
                         : output.logprobs.defined()  ? output.logprobs.detach()
                                                      : at::Tensor();
  const bool has_mismatch = old.defined() && batch.behavior_logprobs.defined();
  at::Tensor is_weights = batch.is_weights;
  if (settings_.rollout_is != RolloutIs::kNone && !is_weights.defined()) {
    TEMPER_CHECK(has_mismatch, "rollout_is needs behavior_logprobs");
    is_weights = importance_weights(old, batch.behavior_logprobs, batch.counted, segments, settings_);
  }
  if (!loss_) {
    const PairLoss pairs = preference_loss(output, batch, segments, settings_);
    policy_loss = pairs.loss.sum() / std::max(1.0, counts.num_groups);
    metrics.add_pairs(pairs);
  } else if (const PolicyLossRow& row = *loss_; row.compute != nullptr) {
    TEMPER_CHECK(output.logprobs.defined(), "{} needs the policy's log-probabilities",
                 to_string(settings_.policy_loss));
    TEMPER_CHECK(!row.selects || batch.selected.defined(), "{} before prepare", to_string(settings_.policy_loss));
    const TokenLossInput input{settings_,
                               segments,
                               only(output.logprobs, batch.kept),
                               only(old, batch.kept),
                               only(batch.advantages, batch.kept),
                               batch.kept,
                               batch.selected};
    const TokenLoss token_loss = row.compute(input);
    at::Tensor weighted = token_loss.loss * weights;
    if (row.weighted && is_weights.defined()) weighted = weighted * is_weights;
    policy_loss = only(weighted, batch.kept).sum();
    if (settings_.is_ratio_loss()) metrics.add_ratio_loss(token_loss, input, row.selects);
  }
  total = total + policy_loss;

  if (settings_.kl_placement == KlPlacement::kLoss && !is_preference_loss(settings_.policy_loss) &&
      batch.ref_logprobs.defined() && output.logprobs.defined()) {
    const at::Tensor d = only(output.logprobs - batch.ref_logprobs, batch.kept);
    const at::Tensor k = only(kl_estimate(d, settings_.kl_estimator, settings_.kl_clamp), batch.kept);
    kl_part = (k * weights).sum();
    if (kl_coef_ != 0) total = total + kl_coef_ * kl_part;
    const at::Tensor all_k = kl_estimate(only(output.logprobs.detach() - batch.ref_logprobs, batch.counted),
                                         settings_.kl_estimator, settings_.kl_clamp);
    metrics.add_token_mean("kl", k, batch.kept);
    metrics.add_internal(kKlCurrentMetric,
                         segments.mean(all_k, batch.counted).sum() / std::max(1.0, counts.num_completions));
  }

  if (output.entropies.defined()) {
    const at::Tensor entropies = only(output.entropies, batch.kept);
    if (settings_.entropy_coef != 0) total = total - settings_.entropy_coef * (entropies * weights).sum();
    metrics.add_token_mean("entropy", entropies, batch.kept);
  }

  if (settings_.adv_estimator == AdvEstimator::kGae) {
    TEMPER_CHECK(output.values.defined() && batch.old_values.defined(),
                 "gae needs the critic's values, now and before");
    const at::Tensor value_weights = aggregation_weights(batch.counted, batch.counted, counts.counted_tokens, segments,
                                                         counts, settings_, context_, dtype);
    const ValueLoss value = value_loss(only(output.values, batch.counted), only(batch.old_values, batch.counted),
                                       only(batch.returns, batch.counted), settings_.value_clip);
    value_part = (value.loss * value_weights).sum();
    total = total + settings_.vf_coef * value_part;
    metrics.add_token_mean("value_clip_ratio", value.clipped, batch.counted);
  }

  if (settings_.distill_loss != DistillLoss::kNone) {
    TEMPER_CHECK(output.divergence.defined(), "distill_loss needs the divergence of each token");
    const at::Tensor divergence = only(output.divergence, batch.kept);
    distill_part = (divergence * weights).sum();
    total = total + settings_.distill_loss_coef * distill_part;
    metrics.add_token_mean("distill_loss", divergence, batch.kept);
  }

  if (has_mismatch) metrics.add_mismatch(old, is_weights, segments, settings_);
  metrics.add_sum("loss", total);
  metrics.add_sum("policy_loss", policy_loss);
  metrics.add_sum("value_loss", value_part);
  metrics.add_internal(kKlTermMetric, kl_part);
  metrics.add_internal(kDistillTermMetric, distill_part);
  return {total, metrics.finish()};
}

}  // namespace

std::optional<double> current_kl(const AdvantageReport& report, const MetricSums& metrics) {
  if (report.kl) return report.kl;
  const MetricSum* entry = metrics.find(kKlCurrentMetric);
  return entry ? std::optional<double>(entry->result()) : std::nullopt;
}

std::unique_ptr<Algorithm> make_algorithm(const AlgoSection& settings, const AlgoContext& context) {
  const EstimatorRow& estimator = estimator_row(settings.adv_estimator);
  if (is_preference_loss(settings.policy_loss))
    return std::make_unique<TableAlgorithm>(settings, context, estimator, std::nullopt);
  return std::make_unique<TableAlgorithm>(settings, context, estimator, policy_loss_row(settings.policy_loss));
}

std::unique_ptr<Algorithm> make_algorithm(const AlgoSection& settings, const AlgoContext& context,
                                          const EstimatorRow& estimator, const PolicyLossRow& loss) {
  return std::make_unique<TableAlgorithm>(settings, context, estimator, loss);
}

}  // namespace temper
