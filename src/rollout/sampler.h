// From logits to tokens: the draws of one engine step, shared out over the threads. The kernels are
// model/vocab_kernels.h. A draw depends on its row of logits, its settings and its uniform number alone.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <vector>

#include "core/rng.h"
#include "core/rollout_types.h"

namespace temper {

// ConfigError for settings that cannot work; `where` opens the message ("line 3", "request 7").
void check_sampling(const SamplingParams& sampling, const std::string& where);

struct Draw {
  int64_t row = 0;  // of the logits; several completions may draw from one row
  const SamplingParams* sampling = nullptr;
  DrawKey key;
};

struct DrawnToken {
  int32_t token_id = 0;
  float logprob = 0;           // at temperature 1, untruncated
  float behavior_logprob = 0;  // at the sampling temperature, untruncated; of the greedy token: logprob
};

// logits [n, V] f32 on the CPU → one token a draw, in order. NumericsError where logits are not finite.
std::vector<DrawnToken> draw_tokens(const at::Tensor& logits, const std::vector<Draw>& draws);

}  // namespace temper
