// What the sampler computed differs from what the trainer computes for the same tokens and weights (kernels, precision,
// staleness). Here: importance weights that repair it and rejection of what cannot be repaired.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

// w, [n]: weights of the policy loss. y = old - behavior; mask: bool m. REQUIRES: rollout_is is not none.
at::Tensor importance_weights(const at::Tensor& old_logprobs, const at::Tensor& behavior_logprobs,
                              const at::Tensor& mask, const Segments& segments, const AlgoSection& settings);

// [n] bool: tokens that pass all tests of rollout_rs, given that they count.
at::Tensor passes_rejection(const at::Tensor& old_logprobs, const at::Tensor& behavior_logprobs, const at::Tensor& mask,
                            const Segments& segments, const AlgoSection& settings);

}  // namespace temper
