// GMPO: the geometric mean of clipped token ratios, one loss a completion: l = -mean(A) exp(mean z), with
// z = min(x, hi) where A > 0, max(x, -lo) where A < 0, x = log p - log p_old. Zhao et al. 2025,
// https://arxiv.org/abs/2507.20673.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

TokenLoss gmpo_loss(const TokenLossInput& in) {
  const double low = -in.settings.clip_ratio_low, high = in.settings.clip_ratio_high;
  const at::Tensor x = in.policy - in.old;
  const at::Tensor positive = in.advantages > 0, negative = in.advantages < 0;
  // min(x, clamp(x, -lo, hi)) is min(x, hi), as -lo <= hi; likewise the other.
  const at::Tensor z = at::where(positive, x.clamp_max(high), at::where(negative, x.clamp_min(low), at::zeros_like(x)));
  const at::Tensor ratio = in.segments.mean(z, in.mask).exp();
  const at::Tensor advantage = in.segments.mean(in.advantages, in.mask);
  return {in.segments.spread(-advantage * ratio), (x < low) & negative, (x > high) & positive, {}};
}

}  // namespace temper
