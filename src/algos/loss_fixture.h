// The fixture of `temper loss`: one global batch with everything that its settings need, as JSON. Strict: an unknown
// field, a missing or misshapen array, a number that is not finite are errors that name their place. Format:
// docs/algorithms.md.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>

#include "algos/batch.h"
#include "algos/settings.h"

namespace temper {

struct LossFixture {
  AlgoSection settings;
  AlgoContext context;
  LossBatch batch;  // f64
  // Leaves that gradients are asked for, f64; undefined where the fixture has none.
  at::Tensor policy_logprobs;  // [N]
  at::Tensor values;           // [N]
  at::Tensor policy_logits;    // [N, V]
  at::Tensor teacher_logits;   // [N, V], a constant
  at::Tensor entropies;        // [N], a constant
};

// Throws ConfigError, FormatError or NumericsError.
LossFixture parse_loss_fixture(const std::string& text);
LossFixture read_loss_fixture(const std::string& path);  // and IoError

// What `temper loss` prints: one JSON object. Throws NumericsError where a result is not finite.
std::string evaluate_loss_fixture(LossFixture& fixture);

}  // namespace temper
