// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over a flat buffer or parts of one, as torch.optim.AdamW computes
// it:
//   p -= lr * weight_decay * p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
// Biases and norms (one-dimensional parameters) do not decay. Results do not depend on the number of threads.
// On a GPU LibTorch's fused kernel does the same in its own order of operations.
#pragma once
#include <functional>

#include "model/parameters.h"
#include "trainer/shard_plan.h"

namespace temper {

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

// sqrt(sum of squares) of a flat f32 buffer, summed in f64 (on the CPU over fixed pieces).
double global_norm(const at::Tensor& flat);

class AdamW {
 public:
  // What the plan says that this rank owns, all or some ranges: the moments take memory for these alone.
  AdamW(const std::vector<ParameterSpec>& layout, const AdamWSettings& settings, const ShardPlan& plan,
        at::Device device = at::kCPU);

  // Updates what is owned, with gradients * gradient_scale, in one pass; then all gradients are zero. Each owned range
  // lies in one of the parts.
  void step(const std::vector<FlatPart>& parameters, const std::vector<FlatPart>& gradients, double learning_rate,
            double gradient_scale);

  const ShardPlan& plan() const { return plan_; }
  int64_t num_steps() const { return num_steps_; }
  void set_num_steps(int64_t value) { num_steps_ = value; }  // on resume

  // The moments of what is owned, by its place in the flat buffer: the optimiser's own memory.
  std::vector<FlatPart> exp_avg() const { return parts_of(exp_avg_); }
  std::vector<FlatPart> exp_avg_sq() const { return parts_of(exp_avg_sq_); }

 private:
  // visit(piece of a parameter in the flat buffer, where its moments begin, whether it decays)
  void each_piece(const std::function<void(const FlatRange& piece, int64_t moments, bool decays)>& visit) const;
  void step_on_device(const std::vector<FlatPart>& parameters, const std::vector<FlatPart>& gradients,
                      double learning_rate, double gradient_scale) const;
  std::vector<FlatPart> parts_of(const at::Tensor& moments) const;

  AdamWSettings settings_;
  ShardPlan plan_;
  std::vector<ParameterSpec> layout_;
  at::Tensor exp_avg_, exp_avg_sq_;  // the owned ranges one behind the other
  int64_t num_steps_ = 0;
};

}  // namespace temper
