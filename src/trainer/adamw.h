// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over one flat buffer, as torch.optim.AdamW computes it:
//   p -= lr * weight_decay * p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
// Biases and norms (one-dimensional parameters) do not decay. Results do not depend on the number of threads.
#pragma once
#include "model/parameters.h"

namespace temper {

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

// sqrt(sum of squares) of a flat f32 buffer, summed in f64 over fixed pieces.
double global_norm(const at::Tensor& flat);

class AdamW {
 public:
  AdamW(const FlatParameters& parameters, const AdamWSettings& settings);

  // Uses gradients * gradient_scale, then zeroes them, in one pass.
  void step(const FlatParameters& parameters, const FlatParameters& gradients, double learning_rate,
            double gradient_scale);

  const FlatParameters& exp_avg() const { return exp_avg_; }
  const FlatParameters& exp_avg_sq() const { return exp_avg_sq_; }
  int64_t num_steps() const { return num_steps_; }
  void set_num_steps(int64_t value) { num_steps_ = value; }  // on resume

 private:
  AdamWSettings settings_;
  FlatParameters exp_avg_, exp_avg_sq_;
  int64_t num_steps_ = 0;
};

}  // namespace temper
