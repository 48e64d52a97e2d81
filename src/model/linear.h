// What a linear layer multiplies with: weights packed for generation, and where they are trained also packed for the
// backward product, with the place their gradient is summed. The same call serves the engine and the trainer. Weight
// gradients go straight into f32 buffers (views of one flat tensor), never through autograd: many micro-batches add up
// without rounding, and no second copy exists.
#pragma once
#include <ATen/core/Tensor.h>

#include "comm/communicator.h"
#include "model/matmul.h"

namespace temper {

struct LinearWeights {
  PackedMatrix forward;    // x · Wᵀ
  PackedMatrix backward;   // dy · W; undefined where nothing is trained
  at::Tensor bias;         // [N] f32 or undefined
  at::Tensor weight_grad;  // [N, K] f32 or undefined
  at::Tensor bias_grad;    // [N] f32 or undefined

  // Tensor parallelism (tensor_parallel.h). Other ranks hold the other outputs: backward sums the gradient of x over
  // them. Or they hold the other inputs: forward sums the product. Null: everything is here.
  Communicator* output_ranks = nullptr;
  Communicator* input_ranks = nullptr;
  int64_t first_output = 0;   // of the whole matrix
  int64_t total_outputs = 0;  // 0: those that are here

  // weight [N, K] and bias [N] (may be undefined) are the f32 masters. REQUIRES: a trainable one is not int8.
  void load(const at::Tensor& weight, const at::Tensor& bias_master, at::ScalarType compute, bool trainable,
            WeightFormat format = WeightFormat::kCompute);
  int64_t num_outputs() const { return total_outputs > 0 ? total_outputs : forward.num_outputs(); }
};

// x [T, K] → x · Wᵀ + bias [T, N] in out_dtype. Differentiable in x; adds to weight_grad and bias_grad in its backward.
at::Tensor linear(const at::Tensor& x, const LinearWeights& weights, at::ScalarType out_dtype);

// residual [T, N] f32 + x · Wᵀ (+ bias), f32. In inference the sum is made in place: residual is consumed.
at::Tensor linear_add(const at::Tensor& residual, const at::Tensor& x, const LinearWeights& weights);

// Rounds f32 values to the compute dtype's values, still f32: what every reader of the weights computes with.
at::Tensor round_to(const at::Tensor& values, at::ScalarType compute);

}  // namespace temper
