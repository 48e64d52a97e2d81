// Log-probabilities of given tokens without ever holding [tokens x vocabulary]: the head's product, log-softmax, gather
// and entropy run over blocks of the vocabulary, and the backward pass computes each block again. Where ranks share the
// head (LinearWeights::output_ranks), each runs over its own part and all get the whole vocabulary's numbers.
#pragma once
#include <ATen/core/Tensor.h>

#include "model/linear.h"

namespace temper {

struct TokenLogprobs {
  at::Tensor logprobs;   // [n] f32: log softmax(logits / temperature)[target]; differentiable
  at::Tensor entropies;  // [n] f32: of the same distribution; a constant for autograd unless asked for
};

// hidden [n, hidden_size] after the final norm; targets [n] int64, on any device. entropy_gradient: entropies are
// differentiable too.
TokenLogprobs token_logprobs(const at::Tensor& hidden, const at::Tensor& targets, const LinearWeights& head,
                             double temperature, bool entropy_gradient = false);

}  // namespace temper
