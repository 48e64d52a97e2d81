// DPPO with the total-variation trust region: l = -A sg(min(rho, C)) log p where the change of the token's probability
// is within the bounds (p - p_old <= hi where A > 0, >= -lo elsewhere), 0 where it is not. Qi et al. 2026,
// https://arxiv.org/abs/2602.04879.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

TokenLoss dppo_tv_loss(const TokenLossInput& in) {
  const AlgoSection& settings = in.settings;
  const at::Tensor policy = in.policy.detach();
  const at::Tensor ratio = clamped_log_ratio(policy, in.old).exp();
  const at::Tensor change = policy.exp() - in.old.exp();
  const at::Tensor positive = in.advantages > 0;
  const at::Tensor valid = at::where(positive, change <= settings.clip_ratio_high, change >= -settings.clip_ratio_low);
  const bool bounded = settings.clip_ratio_c > 0;
  const at::Tensor weight = bounded ? ratio.clamp_max(settings.clip_ratio_c) : ratio;
  TokenLoss result;
  result.loss = (-in.advantages * weight * in.policy).masked_fill(valid.logical_not(), 0);
  result.clipped_low = positive.logical_not() & valid.logical_not();
  result.clipped_high = positive & valid.logical_not();
  if (bounded) result.clipped_dual = (ratio > settings.clip_ratio_c) & valid;
  return result;
}

}  // namespace temper
