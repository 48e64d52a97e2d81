// Vectorised passes over one row of f32 logits, for vocab_kernels.cpp. Weights are exp((logit - maximum) *
// inv_temperature), of logits below threshold 0. Sums run over blocks of kVocabBlock logits: f32 inside, f64 across.
#pragma once
#include <cstdint>
#include <vector>

namespace temper {

constexpr int64_t kVocabBlock = 1024;
constexpr int64_t kMaximaBlock = 64;

struct RowGradient {
  float inv_temperature = 1, logsumexp = 0, grad = 0;
  float entropy = 0, entropy_grad = 0;
};

struct VocabRowKernels {
  float (*maximum)(const float* logits, int64_t vocab);                     // NaNs are passed over
  int64_t (*first_equal)(const float* logits, int64_t vocab, float value);  // vocab: none
  // Sum of the weights; block_sums: each block's, or null; weighted: sum of weight * (logit - maximum) *
  // inv_temperature, or null. A NaN logit makes the sum NaN.
  double (*sum_weights)(const float* logits, int64_t vocab, float maximum, float inv_temperature, float threshold,
                        float* block_sums, double* weighted);
  // Index of the first logit at which cumulative (the weights before) exceeds target, or the last with a weight; -1:
  // none.
  int64_t (*find)(const float* logits, int64_t count, float maximum, float inv_temperature, float threshold,
                  double cumulative, double target);
  // -softmax * grad - softmax * (log softmax + entropy) * entropy_grad, times inv_temperature, in place.
  void (*differentiate)(float* logits, int64_t vocab, const RowGradient& row);
  void (*weights)(const float* logits, int64_t count, float maximum, float inv_temperature, float* weights);
  // Sum of the weights of the logits >= threshold.
  double (*sum_kept)(const float* logits, const float* weights, int64_t count, float threshold);
  void (*block_maxima)(const float* logits, int64_t vocab, float* maxima);  // of each kMaximaBlock
  void (*collect)(const float* logits, int64_t vocab, float threshold,
                  std::vector<float>& values);  // those >= threshold
};

const VocabRowKernels& vocab_row_kernels();

}  // namespace temper
