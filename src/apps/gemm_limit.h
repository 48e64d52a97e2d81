// The matrix-product limit: how long the matrix products of some forward passes take when they run alone, on packed
// weights of the model's shapes and this process's threads. What a bench divides by the time of the whole.
#pragma once
#include <map>
#include <vector>

#include "model/matmul.h"
#include "model/model_config.h"
#include "rollout/engine.h"

namespace temper {

// How often each shape of forward pass happened.
using StepCounts = std::map<StepShape, int64_t>;

class GemmLimit {
 public:
  // Packs random weights: every layer its own, so that they come from where a model's come from.
  GemmLimit(const ModelConfig& config, at::ScalarType compute, WeightFormat weights, at::Device device);

  // Seconds for all steps: each shape is timed several times, its median counts. Leaves out shapes that make up less
  // than a thousandth of the rows.
  double seconds(const StepCounts& steps) const;

 private:
  double seconds_of(const StepShape& shape) const;

  at::ScalarType compute_;
  at::Device device_;
  std::vector<PackedMatrix> products_;  // each layer's qkv, output, gate and up, down; then the head
};

}  // namespace temper
