// Losses on pairs: every group is [chosen, rejected]. Sums run over m, means over groups; no aggregation.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

struct PairLoss {
  at::Tensor loss;      // [G] differentiable; 0 for groups that were filtered out
  at::Tensor chosen;    // [G] constants: the implicit (dpo, ipo) or predicted (reward_model) rewards
  at::Tensor rejected;  // [G]
  at::Tensor stays;     // [G] bool
};

// REQUIRES: is_preference_loss(settings.policy_loss) and every group whole, of two.
PairLoss preference_loss(const PolicyOutput& output, const LossBatch& micro_batch, const Segments& segments,
                         const AlgoSection& settings);

}  // namespace temper
