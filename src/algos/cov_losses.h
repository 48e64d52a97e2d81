// The selection of clip_cov and kl_cov: few tokens of the whole mini-batch, by the covariance of advantage and
// log-probability. Cui et al. 2025, "The entropy mechanism of reinforcement learning",
// https://arxiv.org/abs/2505.22617.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/batch.h"
#include "algos/settings.h"
#include "core/rng.h"

namespace temper {

// [N] bool. policy_logprobs: [N] of the mini-batch, no gradient. clip_cov draws among the candidates with rng; null
// takes those of largest covariance (kl_cov always does). Ties go to the earlier token.
at::Tensor select_by_covariance(const LossBatch& mini_batch, const at::Tensor& policy_logprobs,
                                const AlgoSection& settings, SplitMix64* rng);

}  // namespace temper
