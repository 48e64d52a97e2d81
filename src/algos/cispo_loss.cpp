// CISPO: l = -sg(clamp(rho, 1 - lo, 1 + hi)) A log p: the weight is clipped, the gradient of no token is lost. MiniMax
// 2025, https://arxiv.org/abs/2506.13585. cispo_bound absolute is min(rho, hi), TRL's reading; relative is verl's.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

TokenLoss cispo_loss(const TokenLossInput& in) {
  const AlgoSection& settings = in.settings;
  const at::Tensor ratio = clamped_log_ratio(in.policy.detach(), in.old).exp();
  const bool absolute = settings.cispo_bound == CispoBound::kAbsolute;
  const double low = 1 - settings.clip_ratio_low, high = settings.clip_ratio_high + (absolute ? 0 : 1);
  const at::Tensor weight = absolute ? ratio.clamp_max(high) : ratio.clamp(low, high);
  TokenLoss result;
  result.loss = -weight * in.advantages * in.policy;
  if (!absolute) result.clipped_low = ratio < low;
  result.clipped_high = ratio > high;
  return result;
}

}  // namespace temper
