#include "apps/gemm_limit.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "apps/bench.h"
#include "core/clock.h"
#include "model/device.h"

namespace temper {
namespace {

constexpr size_t kPerLayer = 4;
constexpr int64_t kHeadRows = 64;  // as the engine takes them

}  // namespace

GemmLimit::GemmLimit(const ModelConfig& config, at::ScalarType compute, WeightFormat weights, at::Device device)
    : compute_(compute), device_(device) {
  const int64_t hidden = config.hidden_size, wide = config.intermediate_size;
  const at::Tensor qkv = at::randn({config.q_size() + 2 * config.kv_size(), hidden});
  const at::Tensor output = at::randn({hidden, config.q_size()});
  const at::Tensor gate_up = at::randn({2 * wide, hidden}), down = at::randn({hidden, wide});
  const auto add = [&](const at::Tensor& weight) {
    products_.emplace_back().pack(weight.to(device), compute, weights);
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer)
    for (const at::Tensor& weight : {qkv, output, gate_up, down}) add(weight);
  add(at::randn({config.vocab_size, hidden}));
}

double GemmLimit::seconds_of(const StepShape& shape) const {
  // Inputs and outputs are written before the clock starts. qkv, gate and up come out in the compute dtype; the others
  // are added to the residual stream; logits are f32.
  std::vector<at::Tensor> in, out;
  const auto prepare = [&](const PackedMatrix& product, int64_t rows, at::ScalarType out_dtype) {
    in.push_back(at::randn({rows, product.num_inputs()}, at::TensorOptions(device_)).to(compute_));
    out.push_back(at::zeros({rows, product.num_outputs()}, at::TensorOptions(device_).dtype(out_dtype)));
  };
  for (size_t i = 0; i < kPerLayer; ++i) prepare(products_[i], shape.num_tokens, i % 2 == 0 ? compute_ : at::kFloat);
  prepare(products_.back(), std::min(shape.num_logit_rows, kHeadRows), at::kFloat);
  const auto multiply = [](const PackedMatrix& product, const at::Tensor& x, at::Tensor y) {
    product.multiply_columns(x, 0, product.num_outputs(), y);
  };
  const auto run = [&] {
    for (size_t i = 0; i + 1 < products_.size(); ++i) {
      const size_t kind = i % kPerLayer;
      if (kind % 2 == 0)
        multiply(products_[i], in[kind], out[kind]);
      else
        products_[i].multiply_add(in[kind], out[kind]);
    }
    for (int64_t done = 0; done < shape.num_logit_rows; done += kHeadRows) {
      const int64_t rows = std::min(kHeadRows, shape.num_logit_rows - done);
      multiply(products_.back(), in[kPerLayer].narrow(0, 0, rows), out[kPerLayer].narrow(0, 0, rows));
    }
    synchronize(device_);
  };
  run();
  std::vector<double> times;
  for (const Stopwatch total; times.size() < 3 || (total.seconds() < 0.3 && times.size() < 50);) {
    const Stopwatch clock;
    run();
    times.push_back(clock.seconds());
  }
  return quantile(times, 0.5);
}

double GemmLimit::seconds(const StepCounts& steps) const {
  at::NoGradGuard no_grad;
  double rows = 0, total = 0;
  for (const auto& [shape, count] : steps) rows += static_cast<double>(shape.num_tokens * count);
  for (const auto& [shape, count] : steps)
    if (static_cast<double>(shape.num_tokens * count) * 1000 >= rows)
      total += seconds_of(shape) * static_cast<double>(count);
  return total;
}

}  // namespace temper
