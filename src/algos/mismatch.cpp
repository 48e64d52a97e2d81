#include "algos/mismatch.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"

namespace temper {

// Truncated importance sampling (Yao et al. 2025, https://fengyao.notion.site/off-policy-rl) clamps the weight, masked
// (IcePop, MIS) drops what lies outside. Both ends are clamped, as in TRL and OpenRLHF; verl's upper end alone is
// rollout_is_min = 0.
at::Tensor importance_weights(const at::Tensor& old_logprobs, const at::Tensor& behavior_logprobs,
                              const at::Tensor& mask, const Segments& segments, const AlgoSection& settings) {
  at::Tensor y = (old_logprobs - behavior_logprobs).masked_fill(mask.logical_not(), 0);
  if (settings.rollout_is == RolloutIs::kSequence) y = segments.spread(segments.sum(y));
  const at::Tensor w = y.clamp(-20, 20).exp();
  const double low = settings.rollout_is_min, high = settings.rollout_is_max;
  if (settings.rollout_is_mode == RolloutIsMode::kTruncate) return w.clamp(low, high);
  return w.masked_fill((w < low) | (w > high), 0);
}

// verl's rollout_corr: x = clamp(old - behavior, -20, 20); k1 = -x, k2 = x^2/2, k3 = e^x - 1 - x; a token's own, or the
// sum, mean or maximum over its completion's counted tokens. k1 is bounded on both sides: it bounds behavior/old.
at::Tensor passes_rejection(const at::Tensor& old_logprobs, const at::Tensor& behavior_logprobs, const at::Tensor& mask,
                            const Segments& segments, const AlgoSection& settings) {
  const at::Tensor x = (old_logprobs - behavior_logprobs).masked_fill(mask.logical_not(), 0).clamp(-20, 20);
  at::Tensor passes = at::ones_like(mask);
  for (const auto& [test, bound] : settings.rollout_rs) {
    const std::string form = test.substr(test.rfind('_') + 1), scope = test.substr(0, test.rfind('_'));
    TEMPER_CHECK(form == "k1" || form == "k2" || form == "k3", "unknown rejection test {}", test);
    at::Tensor k = form == "k1" ? -x : form == "k2" ? x.square() * 0.5 : x.expm1() - x;  // 0 where masked
    if (scope == "seq_sum") {
      k = segments.spread(segments.sum(k));
    } else if (scope == "seq_mean") {
      k = segments.spread(segments.mean(k, mask));
    } else if (scope == "seq_max") {
      k = segments.spread(segments.max(k));  // k2 and k3 are not negative, so masked zeros do no harm
    } else {
      TEMPER_CHECK(scope == "token", "unknown rejection test {}", test);
    }
    if (form == "k1")
      passes = passes & (k >= std::log(bound.lo)) & (k <= std::log(bound.hi));
    else
      passes = passes & (k <= bound.hi);
  }
  return passes;
}

}  // namespace temper
