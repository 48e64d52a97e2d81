// SAPO: a soft gate in place of the clip, l = -A sigmoid(tau (rho - 1)) 4 / tau, with tau for positive and other
// advantages. Gao et al. 2025, https://arxiv.org/abs/2511.20347.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

TokenLoss sapo_loss(const TokenLossInput& in) {
  const at::Tensor ratio = clamped_log_ratio(in.policy, in.old).exp();
  const at::Tensor tau =
      at::full_like(in.advantages, in.settings.sapo_tau_neg).masked_fill(in.advantages > 0, in.settings.sapo_tau_pos);
  return {-in.advantages * (tau * (ratio - 1)).sigmoid() * 4 / tau, {}, {}, {}};
}

}  // namespace temper
