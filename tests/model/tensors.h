// Tensors that tests of the model make and compare.
#pragma once
#include <ATen/ATen.h>

namespace temper {

// Standard normal values of this seed, drawn in f32.
inline at::Tensor randn(at::IntArrayRef shape, int64_t seed, at::ScalarType dtype = at::kFloat) {
  return at::randn(shape, at::detail::createCPUGenerator(static_cast<uint64_t>(seed)),
                   at::TensorOptions().dtype(at::kFloat))
      .to(dtype);
}

inline double largest_error(const at::Tensor& a, const at::Tensor& b) {
  return (a.to(at::kDouble) - b.to(at::kDouble)).abs().max().item<double>();
}

}  // namespace temper
