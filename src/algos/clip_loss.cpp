// The clipped surrogate of PPO, with the bound of dual-clip PPO and with DAPO's separate bounds.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

// M = max(-A rho, -A clamp(rho, 1 - lo, 1 + hi)). Schulman et al. 2017, https://arxiv.org/abs/1707.06347.
TokenLoss clipped_surrogate(const at::Tensor& ratio, const at::Tensor& advantages, const AlgoSection& settings) {
  const double low = 1 - settings.clip_ratio_low, high = 1 + settings.clip_ratio_high;
  TokenLoss result;
  // clamp passes its gradient on the bounds too; maximum would halve it between two equal arguments that both have one,
  // which adds up to the same.
  result.loss = at::maximum(-advantages * ratio, -advantages * ratio.clamp(low, high));
  result.clipped_low = (ratio < low) & (advantages < 0);
  result.clipped_high = (ratio > high) & (advantages > 0);
  return result;
}

// M, and min(M, -A C) where A < 0: dual clip, Ye et al. 2020, https://arxiv.org/abs/1912.09729; asymmetric bounds:
// DAPO, Yu et al. 2025, https://arxiv.org/abs/2503.14476. As verl's vanilla loss.
TokenLoss clip_loss(const TokenLossInput& in) {
  const at::Tensor ratio = clamped_log_ratio(in.policy, in.old).exp();
  TokenLoss result = clipped_surrogate(ratio, in.advantages, in.settings);
  if (in.settings.clip_ratio_c == 0) return result;
  const at::Tensor bound = -in.advantages * in.settings.clip_ratio_c;
  result.clipped_dual = (in.advantages < 0) & (result.loss > bound);
  result.loss = at::where(result.clipped_dual, bound, result.loss);
  return result;
}

// GSPO: every token has the sequence's ratio, the geometric mean of its tokens', with the gradient of its own
// log-probability: log ratio = min(policy - sg(policy) + sg(mean of policy - old), 10). Zheng et al. 2025,
// https://arxiv.org/abs/2507.18071, in verl's per-token form; TRL's form with one number a sequence has the same value.
TokenLoss gspo_loss(const TokenLossInput& in) {
  const at::Tensor policy = in.policy.detach();
  const at::Tensor of_sequence = in.segments.spread(in.segments.mean(policy - in.old, in.mask));
  const at::Tensor log_ratio = ((in.policy - policy) + of_sequence).clamp_max(10);
  return clipped_surrogate(log_ratio.exp(), in.advantages, in.settings);
}

}  // namespace temper
