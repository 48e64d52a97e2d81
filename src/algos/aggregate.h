// How numbers of tokens become one loss: agg(x) = sum of weight * x, with the weights of loss_agg_mode. The
// denominators are those of the whole mini-batch, so the sums of micro-batches and ranks add up to the same loss.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

// [n], 0 where mask is 0. denominator: the mask whose tokens are counted for n_i (c, or m), num_tokens: its sum over
// the mini-batch.
at::Tensor aggregation_weights(const at::Tensor& mask, const at::Tensor& denominator, double num_tokens,
                               const Segments& segments, const GlobalCounts& counts, const AlgoSection& settings,
                               const AlgoContext& context, at::ScalarType dtype);

}  // namespace temper
