// Rotary position embedding (Su et al. 2021, arXiv:2104.09864) in the half-split form of the Hugging Face models:
// element d of a head is rotated with element d + head_dim/2. Frequencies for each kind of scaling as transformers
// computes them, in f32 and by the same operators, since at position 8,000 one unit in the last place of a frequency is
// 5e-4 of an angle.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

#include "model/model_config.h"

namespace temper {

struct RopeFrequencies {
  at::Tensor inverse;             // [head_dim / 2] f32
  double attention_factor = 1.0;  // multiplies cos and sin (yarn; 1 otherwise)
};

RopeFrequencies rope_frequencies(const ModelConfig& config);

struct RopeTable {
  at::Tensor cos;  // [num_positions, head_dim / 2] f32, attention factor included
  at::Tensor sin;  // [num_positions, head_dim / 2] f32
};

RopeTable rope_table(const ModelConfig& config, int64_t num_positions);

}  // namespace temper
