#include "apps/training_gemm_limit.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "apps/bench.h"
#include "core/clock.h"
#include "model/device.h"

namespace temper {
namespace {

constexpr size_t kProductsPerLayer = 4;
constexpr int64_t kHeadColumns = 2048;  // blocks of the vocabulary, as losses take them
constexpr int kRepeats = 3;

}  // namespace

TrainingGemmLimit::TrainingGemmLimit(const ModelConfig& config, at::ScalarType compute, at::Device device)
    : compute_(compute), device_(device) {
  const int64_t hidden = config.hidden_size, wide = config.intermediate_size;
  const auto add = [&](int64_t outputs, int64_t inputs) {
    const at::Tensor weight = at::randn({outputs, inputs}, at::TensorOptions(device));
    Product& product = products_.emplace_back();
    product.forward.pack(weight, compute);
    if (device.is_cpu())
      product.backward.pack_transposed(weight, compute);
    else
      product.backward = product.forward.transposed();
    product.weight_grad = at::zeros_like(weight);
  };
  for (int64_t layer = 0; layer < config.num_layers; ++layer) {
    add(config.q_size() + 2 * config.kv_size(), hidden);
    add(hidden, config.q_size());
    add(2 * wide, hidden);
    add(hidden, wide);
  }
  add(config.vocab_size, hidden);
}

void TrainingGemmLimit::run(const Product& product, const at::Tensor& x, const at::Tensor& dy) const {
  product.forward.multiply(x, compute_);
  product.backward.multiply(dy, compute_);
  at::Tensor grad = product.weight_grad;
  accumulate_outer_product(dy, x, grad);
}

double TrainingGemmLimit::seconds(int64_t rows) const {
  const at::NoGradGuard no_grad;
  const auto matrix = [&](int64_t columns) {
    return at::randn({rows, columns}, at::TensorOptions(device_)).to(compute_);
  };
  std::vector<at::Tensor> x, dy;
  for (size_t i = 0; i < kProductsPerLayer; ++i) {
    x.push_back(matrix(products_[i].forward.num_inputs()));
    dy.push_back(matrix(products_[i].forward.num_outputs()));
  }
  const Product& head = products_.back();
  const at::Tensor hidden = matrix(head.forward.num_inputs()), block_dy = matrix(kHeadColumns);
  const auto run_head = [&] {
    const auto options = at::TensorOptions(device_);
    at::Tensor logits = at::empty({rows, kHeadColumns}, options),
               hidden_grad = at::zeros({rows, head.forward.num_inputs()}, options);
    for (int64_t begin = 0; begin < head.forward.num_outputs(); begin += kHeadColumns) {
      const int64_t columns = std::min(kHeadColumns, head.forward.num_outputs() - begin);
      at::Tensor out = logits.view(-1).narrow(0, 0, rows * columns).view({rows, columns});
      at::Tensor grad = head.weight_grad.narrow(0, begin, columns);
      const at::Tensor given = block_dy.view(-1).narrow(0, 0, rows * columns).view({rows, columns});
      head.forward.multiply_columns(hidden, begin, begin + columns, out);
      accumulate_outer_product(given, hidden, grad);
      head.backward.multiply_add_inputs(given, begin, hidden_grad);
    }
  };
  std::vector<double> times;
  for (int i = 0; i <= kRepeats; ++i) {
    const Stopwatch clock;
    for (size_t p = 0; p + 1 < products_.size(); ++p)
      run(products_[p], x[p % kProductsPerLayer], dy[p % kProductsPerLayer]);
    run_head();
    synchronize(device_);
    if (i > 0) times.push_back(clock.seconds());  // the first one touches memory
  }
  return quantile(times, 0.5);
}

}  // namespace temper
