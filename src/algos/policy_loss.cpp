#include "algos/policy_loss.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace temper {

const PolicyLossRow& policy_loss_row(PolicyLoss id) {
  static const PolicyLossRow kRows[] = {
      // id, function, weighted by rollout_is, selects tokens in prepare
      {PolicyLoss::kClip, clip_loss, true, false},
      {PolicyLoss::kGspo, gspo_loss, true, false},
      {PolicyLoss::kCispo, cispo_loss, true, false},
      {PolicyLoss::kSapo, sapo_loss, true, false},
      {PolicyLoss::kGmpo, gmpo_loss, true, false},
      {PolicyLoss::kClipCov, clip_cov_loss, true, true},
      {PolicyLoss::kKlCov, kl_cov_loss, true, true},
      {PolicyLoss::kDppoTv, dppo_tv_loss, true, false},
      {PolicyLoss::kReinforce, reinforce_loss, true, false},
      {PolicyLoss::kNone, nullptr, false, false},
      {PolicyLoss::kSft, sft_loss, false, false},
  };
  for (const PolicyLossRow& row : kRows)
    if (row.id == id) return row;
  throw InvariantError("a policy_loss on tokens without a row");
}

at::Tensor clamped_log_ratio(const at::Tensor& policy, const at::Tensor& old) { return (policy - old).clamp(-20, 20); }

// REINFORCE: l = -A log p. Williams 1992, https://doi.org/10.1007/BF00992696.
TokenLoss reinforce_loss(const TokenLossInput& in) { return {-in.advantages * in.policy, {}, {}, {}}; }

// Cross entropy of the tokens that count: l = -log p.
TokenLoss sft_loss(const TokenLossInput& in) { return {-in.policy, {}, {}, {}}; }

}  // namespace temper
