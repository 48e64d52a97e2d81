#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <cmath>

#include "core/error.h"
#include "model/large_pages.h"

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
  if (!flat.is_cpu()) return at::linalg_vector_norm(flat, 2, {}, /*keepdim=*/false, at::kDouble).item<double>();
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

AdamW::AdamW(const std::vector<ParameterSpec>& layout, const AdamWSettings& settings, const ShardPlan& plan,
             at::Device device)
    : settings_(settings), plan_(plan), layout_(layout) {
  int64_t size = 0;
  for (const FlatRange& range : plan_.owned()) size += range.size();
  const auto options = at::TensorOptions(device).dtype(at::kFloat);
  exp_avg_ = at::zeros({size}, options);
  exp_avg_sq_ = at::zeros({size}, options);
}

void AdamW::step(const std::vector<FlatPart>& parameters, const std::vector<FlatPart>& gradients, double learning_rate,
                 double gradient_scale) {
  ++num_steps_;
  if (!exp_avg_.is_cpu()) {
    step_on_device(parameters, gradients, learning_rate, gradient_scale);
  } else {
    const double t = static_cast<double>(num_steps_);
    const auto step_size = static_cast<float>(learning_rate / (1 - std::pow(settings_.beta1, t)));
    const auto root_correction = static_cast<float>(1 / std::sqrt(1 - std::pow(settings_.beta2, t)));
    each_piece([&](const FlatRange& piece, int64_t moments, bool decays) {
      float* p = elements_of(parameters, piece).mutable_data_ptr<float>();
      float* g = elements_of(gradients, piece).mutable_data_ptr<float>();
      float* m = exp_avg_.mutable_data_ptr<float>() + moments;
      float* v = exp_avg_sq_.mutable_data_ptr<float>() + moments;
      const auto decay = static_cast<float>(decays ? 1 - learning_rate * settings_.weight_decay : 1);
      at::parallel_for(0, piece.size(), kPiece, [&](int64_t begin, int64_t end) {
        update(p + begin, g + begin, m + begin, v + begin, end - begin, static_cast<float>(gradient_scale),
               static_cast<float>(settings_.beta1), static_cast<float>(settings_.beta2),
               static_cast<float>(settings_.eps), decay, step_size, root_correction);
      });
    });
    if (!plan_.is_sharded()) return;
  }
  for (const FlatPart& part : gradients) release_memory(part.elements);
}

void AdamW::step_on_device(const std::vector<FlatPart>& parameters, const std::vector<FlatPart>& gradients,
                           double learning_rate, double gradient_scale) const {
  const at::NoGradGuard no_grad;
  struct Lists {
    std::vector<at::Tensor> parameters, gradients, avg, avg_sq, steps;
  } decaying, others;
  const auto options = exp_avg_.options();
  const at::Tensor steps = at::full({}, static_cast<double>(num_steps_), options);
  each_piece([&](const FlatRange& piece, int64_t moments, bool decays) {
    Lists& lists = decays ? decaying : others;
    lists.parameters.push_back(elements_of(parameters, piece));
    lists.gradients.push_back(elements_of(gradients, piece));
    lists.avg.push_back(exp_avg_.narrow(0, moments, piece.size()));
    lists.avg_sq.push_back(exp_avg_sq_.narrow(0, moments, piece.size()));
    lists.steps.push_back(steps);
  });
  // The kernel divides the gradients by what it is given.
  const at::Tensor divisor = at::full({}, 1 / gradient_scale, options);
  for (const auto& [lists, decay] : {std::pair<Lists&, double>(decaying, settings_.weight_decay), {others, 0.0}})
    if (!lists.parameters.empty())
      at::_fused_adamw_(lists.parameters, lists.gradients, lists.avg, lists.avg_sq, {}, lists.steps, learning_rate,
                        settings_.beta1, settings_.beta2, decay, settings_.eps, /*amsgrad=*/false, /*maximize=*/false,
                        divisor);
}

void AdamW::each_piece(const std::function<void(const FlatRange& piece, int64_t moments, bool decays)>& visit) const {
  int64_t moments_begin = 0;  // where the range's moments lie
  for (const FlatRange& range : plan_.owned()) {
    for (const ParameterSpec& spec : layout_) {
      const FlatRange piece{std::max(range.begin, spec.offset), std::min(range.end, spec.offset + spec.num_elements())};
      if (piece.begin < piece.end) visit(piece, moments_begin + piece.begin - range.begin, spec.shape.size() > 1);
    }
    moments_begin += range.size();
  }
}

std::vector<FlatPart> AdamW::parts_of(const at::Tensor& moments) const {
  std::vector<FlatPart> parts;
  int64_t at = 0;
  for (const FlatRange& range : plan_.owned()) {
    parts.push_back({range.begin, moments.narrow(0, at, range.size())});
    at += range.size();
  }
  return parts;
}

}  // namespace temper
