#include "algos/cov_losses.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <utility>

#include "algos/policy_loss.h"
#include "algos/scores.h"
#include "core/error.h"

namespace temper {

// cov = (A - mean A)(log p - mean log p), means over the kept tokens of the mini-batch.
at::Tensor select_by_covariance(const LossBatch& mini_batch, const at::Tensor& policy_logprobs,
                                const AlgoSection& settings, SplitMix64* rng) {
  TEMPER_CHECK(policy_logprobs.dim() == 1 && policy_logprobs.size(0) == mini_batch.num_tokens(),
               "{} log-probabilities for {} tokens", policy_logprobs.numel(), mini_batch.num_tokens());
  const std::vector<double> policy = to_doubles(policy_logprobs), advantages = to_doubles(mini_batch.advantages);
  const std::vector<double> old = to_doubles(mini_batch.old_logprobs), kept = to_doubles(mini_batch.kept);
  double count = 0, sum_advantage = 0, sum_policy = 0;
  for (size_t t = 0; t < kept.size(); ++t) {
    if (kept[t] == 0) continue;
    ++count;
    sum_advantage += advantages[t];
    sum_policy += policy[t];
  }

  const bool clip = settings.policy_loss == PolicyLoss::kClipCov;
  const double share = clip ? settings.clip_cov_ratio : settings.kl_cov_ratio;
  std::vector<std::pair<double, size_t>> candidates;  // covariance, token
  for (size_t t = 0; t < kept.size(); ++t) {
    if (kept[t] == 0) continue;
    const double cov = (advantages[t] - sum_advantage / count) * (policy[t] - sum_policy / count);
    if (clip) {
      const double ratio = old.empty() ? 1 : std::exp(std::clamp(policy[t] - old[t], -20.0, 20.0));
      const double bounded = std::clamp(ratio, 1 - settings.clip_ratio_low, 1 + settings.clip_ratio_high);
      const bool clipped = -advantages[t] * bounded > -advantages[t] * ratio;
      if (clipped || !(cov > settings.clip_cov_lb && cov < settings.clip_cov_ub)) continue;
    }
    candidates.emplace_back(cov, t);
  }

  const bool none = !clip && share == 0;
  const double most = none ? 0 : std::max(1.0, std::floor(share * count));
  const auto take = static_cast<size_t>(std::min(most, static_cast<double>(candidates.size())));
  if (clip && rng != nullptr) {
    for (size_t i = 0; i < take; ++i)
      std::swap(candidates[i],
                candidates[rng->in_range(static_cast<int64_t>(i), static_cast<int64_t>(candidates.size()) - 1)]);
  } else {
    std::partial_sort(
        candidates.begin(), candidates.begin() + static_cast<int64_t>(take), candidates.end(),
        [](const auto& a, const auto& b) { return a.first != b.first ? a.first > b.first : a.second < b.second; });
  }
  at::Tensor selected = at::zeros({mini_batch.num_tokens()}, at::kBool);
  bool* data = selected.mutable_data_ptr<bool>();
  for (size_t i = 0; i < take; ++i) data[candidates[i].second] = true;
  return selected.to(mini_batch.kept.device());
}

// Clip-Cov: the clipped surrogate, and 0 (no gradient) on the selected tokens.
TokenLoss clip_cov_loss(const TokenLossInput& in) {
  TokenLoss result = clipped_surrogate(clamped_log_ratio(in.policy, in.old).exp(), in.advantages, in.settings);
  result.loss = result.loss.masked_fill(in.selected, 0);
  return result;
}

// KL-Cov: l = -A rho, plus kl_cov_coef |log ratio| on the selected tokens.
TokenLoss kl_cov_loss(const TokenLossInput& in) {
  const at::Tensor log_ratio = clamped_log_ratio(in.policy, in.old);
  const at::Tensor penalty = (in.settings.kl_cov_coef * log_ratio.abs()).masked_fill(in.selected.logical_not(), 0);
  return {-in.advantages * log_ratio.exp() + penalty, {}, {}, {}};
}

}  // namespace temper
