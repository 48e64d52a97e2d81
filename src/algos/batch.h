// What losses and advantages are computed from: whole completions laid end to end, without padding. The same type is
// the batch of a step, one of its mini-batches and a micro-batch of that: select() takes completions out, with every
// array. Facts are put in by the trainer (or `temper loss`); the fields below the line by Algorithm::advantages and
// prepare. A completion whose reward failed is left out by the caller, before advantages.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace temper {

struct LossBatch {
  std::vector<int64_t> lengths;      // [B] tokens of each completion, >= 1; N is their sum
  std::vector<int64_t> group_sizes;  // [G] completions of each group, in order; their sum is B
  std::vector<uint8_t> truncated;    // [B] 1: cut off by the length limit; empty = none
  at::Tensor mask;                   // [N] bool: a token of the policy that counts

  // Exactly one of the three where the estimator uses rewards.
  at::Tensor reward;            // [B] one scalar
  at::Tensor rewards;           // [B, K] one a reward function
  at::Tensor token_rewards;     // [N]
  at::Tensor baseline_rewards;  // [G] reward of the greedy completion (remax)
  at::Tensor margins;           // [G] (reward_model); undefined = 0

  // [N], undefined where not needed.
  at::Tensor old_logprobs;       // the proximal policy; undefined in a micro-batch: the policy's own, held constant
  at::Tensor behavior_logprobs;  // the sampler's
  at::Tensor ref_logprobs;
  at::Tensor teacher_logprobs;
  at::Tensor old_values;  // the critic's before the step

  // ---- computed ----
  at::Tensor stays;       // [B] bool: not filtered out
  at::Tensor counted;     // [N] bool m: mask, less truncated (if so set) and filtered completions
  at::Tensor kept;        // [N] bool c: counted and not rejected
  at::Tensor advantages;  // [N]
  at::Tensor returns;     // [N]; undefined unless the estimator makes returns
  at::Tensor is_weights;  // [N] importance weights; undefined = 1
  at::Tensor selected;    // [N] bool: tokens that clip_cov or kl_cov picked; undefined before prepare

  int64_t num_completions() const { return static_cast<int64_t>(lengths.size()); }
  int64_t num_groups() const { return static_cast<int64_t>(group_sizes.size()); }
  int64_t num_tokens() const;
  std::vector<int64_t> offsets() const;  // [B + 1] where each completion starts

  // The given completions, in the given order. Neighbours of the same group stay one group.
  LossBatch select(const std::vector<int64_t>& completions) const;
  // [n] int64: where their tokens lie in [N].
  at::Tensor token_indices(const std::vector<int64_t>& completions) const;
  // Number arrays converted and everything moved; masks stay bool.
  LossBatch to(at::Device device, at::ScalarType dtype) const;
  // Throws InvariantError for an array of the wrong shape.
  void check() const;
};

// What one forward pass of a micro-batch gave. Gradients flow through what requires them.
struct PolicyOutput {
  at::Tensor logprobs;    // [n] of the policy being trained
  at::Tensor entropies;   // [n] of its distributions
  at::Tensor values;      // [n] of the critic or reward head
  at::Tensor divergence;  // [n] vocabulary_divergence(student, teacher), which may be computed in chunks
};

// Denominators of one mini-batch, over all ranks and micro-batches. They make the losses of micro-batches add up to the
// loss of the mini-batch, however it is cut.
struct GlobalCounts {
  double num_completions = 0;  // that stay, fully masked ones included
  double num_groups = 0;       // that stay
  double counted_tokens = 0;   // sum of m
  double kept_tokens = 0;      // sum of c
};

GlobalCounts global_counts(const LossBatch& mini_batch);

// Sums over the tokens of each completion, and back. Built once per micro-batch.
class Segments {
 public:
  Segments(const std::vector<int64_t>& lengths, at::Device device);
  at::Tensor sum(const at::Tensor& per_token) const;          // [N] -> [B]
  at::Tensor max(const at::Tensor& per_token) const;          // [N] -> [B]
  at::Tensor spread(const at::Tensor& per_completion) const;  // [B] -> [N]
  // Mean of x over the tokens where mask is 1, [B]; 0 where there is none. x must be finite everywhere.
  at::Tensor mean(const at::Tensor& x, const at::Tensor& mask) const;

 private:
  at::Tensor lengths_;  // [B]
  at::Tensor index_;    // [N] completion of each token
};

}  // namespace temper
