#include "trainer/adamw.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "core/error.h"

namespace temper {
namespace {

constexpr int64_t kPiece = 1 << 16;  // elements; the order of summation is fixed by it

// One update of n neighbours. The arithmetic is f32, as torch's.
#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
void update(float* p, float* g, float* m, float* v, int64_t n, float scale, float beta1, float beta2, float eps, float decay,
            float step_size, float root_correction) {
  for (int64_t i = 0; i < n; ++i) {
    const float gradient = g[i] * scale;
    g[i] = 0;
    m[i] = beta1 * m[i] + (1 - beta1) * gradient;
    v[i] = beta2 * v[i] + (1 - beta2) * gradient * gradient;
    p[i] = p[i] * decay - step_size * m[i] / (std::sqrt(v[i]) * root_correction + eps);
  }
}

#if defined(__x86_64__)
__attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#endif
double
sum_of_squares(const float* x, int64_t n) {
  double lanes[16] = {};
  for (int64_t i = 0; i + 16 <= n; i += 16)
    for (int64_t j = 0; j < 16; ++j) lanes[j] += static_cast<double>(x[i + j]) * x[i + j];
  double sum = 0;
  for (int64_t i = n / 16 * 16; i < n; ++i) sum += static_cast<double>(x[i]) * x[i];
  for (const double lane : lanes) sum += lane;
  return sum;
}

}  // namespace

double global_norm(const at::Tensor& flat) {
  const float* data = flat.const_data_ptr<float>();
  const int64_t size = flat.numel(), pieces = (size + kPiece - 1) / kPiece;
  std::vector<double> sums(static_cast<size_t>(pieces));
  at::parallel_for(0, pieces, 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i)
      sums[i] = sum_of_squares(data + i * kPiece, std::min(kPiece, size - i * kPiece));
  });
  double sum = 0;
  for (const double piece : sums) sum += piece;
  return std::sqrt(sum);
}

AdamW::AdamW(const FlatParameters& parameters, const AdamWSettings& settings)
    : settings_(settings), exp_avg_(parameters.specs()), exp_avg_sq_(parameters.specs()) {}

void AdamW::step(const FlatParameters& parameters, const FlatParameters& gradients, double learning_rate,
                 double gradient_scale) {
  ++num_steps_;
  const double t = static_cast<double>(num_steps_);
  const auto step_size = static_cast<float>(learning_rate / (1 - std::pow(settings_.beta1, t)));
  const auto root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(settings_.beta2, t)));
  float* p = parameters.flat().mutable_data_ptr<float>();
  float* g = gradients.flat().mutable_data_ptr<float>();
  float* m = exp_avg_.flat().mutable_data_ptr<float>();
  float* v = exp_avg_sq_.flat().mutable_data_ptr<float>();
  for (const ParameterSpec& spec : parameters.specs()) {
    const auto decay = static_cast<float>(spec.shape.size() > 1 ? 1 - learning_rate * settings_.weight_decay : 1);
    at::parallel_for(0, spec.num_elements(), kPiece, [&](int64_t begin, int64_t end) {
      const int64_t at = spec.offset + begin;
      update(p + at, g + at, m + at, v + at, end - begin, static_cast<float>(gradient_scale),
             static_cast<float>(settings_.beta1), static_cast<float>(settings_.beta2),
             static_cast<float>(settings_.eps), decay, step_size, root_correction);
    });
  }
}

}  // namespace temper
