// The matrix-product limit of training: how long the products of a forward and backward pass take when they run alone.
// gemm_limit.h is the same of generation.
#pragma once
#include <vector>

#include "model/matmul.h"
#include "model/model_config.h"

namespace temper {

class TrainingGemmLimit {
 public:
  // Packs random weights for both directions: every layer its own.
  TrainingGemmLimit(const ModelConfig& config, at::ScalarType compute, at::Device device);

  // Seconds of one micro-batch of this many rows, all of which the head sees: x · Wᵀ, dy · W and dyᵀ · x of each weight
  // once (a loss that computes the logits again in its backward pass does more than this). The median of several runs.
  double seconds(int64_t rows) const;

 private:
  struct Product {
    PackedMatrix forward, backward;
    at::Tensor weight_grad;
  };
  void run(const Product& product, const at::Tensor& x, const at::Tensor& dy) const;

  at::ScalarType compute_;
  at::Device device_;
  std::vector<Product> products_;  // each layer's qkv, output, gate and up, down; then the head
};

}  // namespace temper
