// AdamW (Loshchilov & Hutter 2019, arXiv:1711.05101) over one flat buffer, as torch.optim.AdamW computes it:
//   p -= lr * weight_decay * p;  m = b1 m + (1 - b1) g;  v = b2 v + (1 - b2) g^2
//   p -= lr * (m / (1 - b1^t)) / (sqrt(v / (1 - b2^t)) + eps)
// Biases and norms (one-dimensional parameters) do not decay. Results do not depend on the number of threads.
// On a GPU LibTorch's fused kernel does the same in its own order of operations.
#pragma once
#include <functional>

#include "model/parameters.h"
#include "trainer/ranks.h"
#include "trainer/shard_plan.h"

namespace temper {

struct AdamWSettings {
  double beta1 = 0.9, beta2 = 0.999, eps = 1e-8, weight_decay = 0;
};

// sqrt(sum of squares) of a flat f32 buffer, summed in f64 (on the CPU over fixed pieces).
double global_norm(const at::Tensor& flat);

class AdamW {
 public:
  // Everything, or the ranges that this rank owns: the moments take memory for these alone.
  AdamW(const FlatParameters& parameters, const AdamWSettings& settings);
  AdamW(const FlatParameters& parameters, const AdamWSettings& settings, const ShardPlan& plan);

  // Updates what is owned, with gradients * gradient_scale, in one pass; then all gradients are zero.
  void step(const FlatParameters& parameters, const FlatParameters& gradients, double learning_rate,
            double gradient_scale);

  const ShardPlan& plan() const { return plan_; }
  int64_t num_steps() const { return num_steps_; }
  void set_num_steps(int64_t value) { num_steps_ = value; }  // on resume

  // The moments whole, for a checkpoint: the optimiser's own memory where nothing is sharded. Else they are put
  // together from all ranks by gather_moments(), or allocated to be read into by make_room(); keep_own() takes this
  // rank's part of them and lets the memory go, drop_gathered() lets it go.
  const FlatParameters& exp_avg() const { return plan_.is_sharded() ? whole_avg_ : exp_avg_; }
  const FlatParameters& exp_avg_sq() const { return plan_.is_sharded() ? whole_avg_sq_ : exp_avg_sq_; }
  void gather_moments(const Ranks& ranks);
  void make_room();
  void keep_own();
  void drop_gathered();

 private:
  // visit(piece of a parameter in the flat buffer, where its moments begin, whether it decays)
  void each_piece(const std::function<void(const FlatRange& piece, int64_t moments, bool decays)>& visit) const;
  void step_on_device(const FlatParameters& parameters, const FlatParameters& gradients, double learning_rate,
                      double gradient_scale) const;
  void each_owned(const std::function<void(const at::Tensor& own, const at::Tensor& whole)>& visit);

  AdamWSettings settings_;
  ShardPlan plan_;
  std::vector<ParameterSpec> layout_;
  FlatParameters exp_avg_, exp_avg_sq_;      // whole, unless sharded
  at::Tensor own_avg_, own_avg_sq_;          // sharded: the owned ranges one behind the other
  FlatParameters whole_avg_, whole_avg_sq_;  // sharded: for a moment
  int64_t num_steps_ = 0;
};

}  // namespace temper
