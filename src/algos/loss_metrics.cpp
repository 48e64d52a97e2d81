#include "algos/loss_metrics.h"

#include <ATen/ATen.h>

#include <limits>

namespace temper {

void LossMetrics::add_sum(std::string_view name, const at::Tensor& value) {
  pending_.push_back({std::string(name), Reduction::kSum, value, at::ones_like(value)});
}

void LossMetrics::add_internal(std::string_view name, const at::Tensor& value) {
  add_sum(name, value);
  pending_.back().logged = false;
}

void LossMetrics::add_mean(std::string_view name, const at::Tensor& sum, const at::Tensor& weight) {
  pending_.push_back({std::string(name), Reduction::kMean, sum, weight});
}

void LossMetrics::add_token_mean(std::string_view name, const at::Tensor& x, const at::Tensor& mask) {
  const at::Tensor constant = x.detach();
  add_mean(name, at::where(mask, constant, at::zeros_like(constant)).sum(at::kDouble), mask.sum());
}

void LossMetrics::add_extreme(std::string_view name, Reduction reduction, const at::Tensor& x, const at::Tensor& mask) {
  const double nothing = std::numeric_limits<double>::infinity();
  const at::Tensor constant = x.detach();
  const at::Tensor value = reduction == Reduction::kMin ? constant.masked_fill(mask.logical_not(), nothing).min()
                                                        : constant.masked_fill(mask.logical_not(), -nothing).max();
  pending_.push_back({std::string(name), reduction, value, mask.sum()});
}

void LossMetrics::add_ratio_loss(const TokenLoss& loss, const TokenLossInput& input, bool selects) {
  const at::Tensor& mask = input.mask;
  add_token_mean("ppo_kl", -clamped_log_ratio(input.policy.detach(), input.old), mask);
  const at::Tensor none = at::zeros_like(mask);
  const auto count = [&](const at::Tensor& where) { return ((where.defined() ? where : none) & mask).sum(); };
  const at::Tensor tokens = mask.sum(), low = count(loss.clipped_low), high = count(loss.clipped_high);
  add_mean("clip_ratio/low_mean", low, tokens);
  add_mean("clip_ratio/high_mean", high, tokens);
  add_mean("clip_ratio/region_mean", low + high, tokens);
  add_mean("clip_ratio/dual_mean", count(loss.clipped_dual), tokens);
  if (selects) add_mean("clip_ratio/cov_mean", count(input.selected), tokens);
}

void LossMetrics::add_mismatch(const at::Tensor& old_logprobs, const at::Tensor& is_weights, const Segments& segments,
                               const AlgoSection& settings) {
  const at::Tensor& counted = batch_.counted;
  const at::Tensor difference = (old_logprobs - batch_.behavior_logprobs).abs();
  add_token_mean("sampling/sampling_logp_difference/mean", difference, counted);
  add_extreme("sampling/sampling_logp_difference/max", Reduction::kMax, difference, counted);
  if (settings.rollout_is != RolloutIs::kNone) {
    at::Tensor weights = is_weights, where = counted;
    if (settings.rollout_is == RolloutIs::kSequence) {
      weights = segments.max(is_weights);  // the same for every token of a completion
      where = segments.max(counted.to(is_weights.scalar_type())) > 0;
    }
    add_extreme("sampling/importance_sampling_ratio/min", Reduction::kMin, weights, where);
    add_token_mean("sampling/importance_sampling_ratio/mean", weights, where);
    add_extreme("sampling/importance_sampling_ratio/max", Reduction::kMax, weights, where);
  }
  if (!settings.rollout_rs.empty()) add_token_mean("sampling/rejected_ratio", batch_.kept.logical_not(), counted);
}

void LossMetrics::add_pairs(const PairLoss& pairs) {
  const at::Tensor groups = pairs.stays.sum();
  const auto add = [&](std::string_view name, const at::Tensor& per_group) {
    add_mean(name, at::where(pairs.stays, per_group, at::zeros_like(per_group)).sum(at::kDouble), groups);
  };
  add("rewards/chosen", pairs.chosen);
  add("rewards/rejected", pairs.rejected);
  add("rewards/margins", pairs.chosen - pairs.rejected);
  add("rewards/accuracies", (pairs.chosen > pairs.rejected).to(at::kDouble));
}

MetricSums LossMetrics::finish() const {
  std::vector<at::Tensor> scalars;
  for (const Pending& entry : pending_)
    for (const at::Tensor* scalar : {&entry.value, &entry.weight}) scalars.push_back(scalar->detach().to(at::kDouble));
  MetricSums sums;
  if (scalars.empty()) return sums;
  const at::Tensor numbers = at::stack(scalars).to(at::kCPU);
  const double* data = numbers.const_data_ptr<double>();
  for (size_t i = 0; i < pending_.size(); ++i)
    sums.add({pending_[i].name, pending_[i].reduction, data[2 * i], data[2 * i + 1], pending_[i].logged});
  return sums;
}

}  // namespace temper
