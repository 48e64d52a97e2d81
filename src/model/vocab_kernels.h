// What log-probabilities, losses and the sampler need from rows of f32 logits [n, V]: one or two vectorised passes a
// row instead of a softmax tensor. f32 arithmetic, exp to about 1e-7, sums in a fixed order; one thread a row and rows
// shared out with at::parallel_for, so results do not depend on the number of threads. Not differentiable: the callers'
// autograd functions use logits_backward_. Tensors are contiguous f32 (targets int64); CPU takes our kernels, other
// devices ATen.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>

namespace temper {

// Columns whose log-sum-exp is rounded to f32 before combine_logsumexp adds them up: of the sampler and of whoever
// computes log-probabilities block by block, so that both have the same bits.
constexpr int64_t kLogsumexpBlock = 2048;

// block_sums [n, blocks] f32, the log-sum-exp of each block of a row → of the row [n]; f64 inside, in order.
at::Tensor combine_logsumexp(const at::Tensor& block_sums);

struct VocabStatistics {
  at::Tensor logsumexp;      // [n] of logits * inv_temperature
  at::Tensor target_logits;  // [n] logit of the target * inv_temperature; undefined without targets
  at::Tensor entropy;        // [n] of softmax(logits * inv_temperature); undefined unless asked for
};

// logits [n, V], targets int64 [n] or undefined (a target outside [0, V) gives target logit 0: a masked row).
// log p(target) = target_logits - logsumexp.
VocabStatistics vocab_statistics(const at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                                 bool with_entropy);
at::Tensor row_logsumexp(const at::Tensor& logits, double inv_temperature);  // [n]
at::Tensor row_entropy(const at::Tensor& logits, double inv_temperature);    // [n]

// In place, the gradient of sum_i grad[i] * log p(target_i) + entropy_grad[i] * entropy_i by the logits:
//   logits <- ((onehot(target) - p) * grad - p * (log p + entropy) * entropy_grad) * inv_temperature
// with p = exp(logits * inv_temperature - logsumexp). grad, logsumexp (and entropy, entropy_grad, or both undefined)
// [n]. The logits may be some columns of a larger vocabulary, logsumexp and entropy being the whole's: a target outside
// [0, V) has no onehot here. Masked rows have grad 0.
void logits_backward_(at::Tensor& logits, double inv_temperature, const at::Tensor& targets,
                      const at::Tensor& logsumexp, const at::Tensor& grad, const at::Tensor& entropy = {},
                      const at::Tensor& entropy_grad = {});

// ---- One row of the sampler, on the calling thread (CPU memory); parallelise over rows outside. ----

struct TokenFilter {
  int64_t top_k = 0;   // 0: all
  double top_p = 1.0;  // smallest set of most likely tokens whose probability reaches top_p
  double min_p = 0.0;  // tokens at least min_p times as likely as the likeliest
  bool active(int64_t vocab) const { return (top_k > 0 && top_k < vocab) || top_p < 1.0 || min_p > 0.0; }
};

struct TokenDraw {
  int64_t token = 0;
  float logit = 0;      // raw
  float logsumexp = 0;  // of the raw logits (temperature 1), by blocks: logprob = logit - logsumexp
  float scaled_logsumexp =
      0;  // of logits / temperature, before the filter: behavior_logprob = logit / temperature - this
};

// Index of the largest logit (the first of equals).
int64_t row_argmax(const float* logits, int64_t vocab);

// The smallest logit that the filter keeps (ties with it are kept too); -infinity when it keeps all. Filters apply in
// the order top-k, top-p (of what top-k left, renormalised), min-p, at the given inverse temperature. By selection, not
// by sort.
float filter_threshold(const float* logits, int64_t vocab, float inv_temperature, const TokenFilter& filter);

// Draws a token from softmax(logits / temperature) restricted by the filter: the first, by index, whose cumulative
// probability exceeds u * total, u in [0, 1). temperature 0: the likeliest token (then scaled_logsumexp = logsumexp).
TokenDraw draw_token(const float* logits, int64_t vocab, double temperature, const TokenFilter& filter, double u);

}  // namespace temper
