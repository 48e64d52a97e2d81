// What the tests on a GPU share. They carry the label gpu: without one they are not run, and where they are started all
// the same they fail.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/device.h"

namespace temper {

class OnGpu : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(has_cuda()) << "no GPU here"; }
  at::Device gpu() const { return current_cuda_device(); }
};

inline at::Tensor random_tensor(at::IntArrayRef shape, int64_t seed) {
  at::Generator generator = at::detail::createCPUGenerator(static_cast<uint64_t>(seed));
  return at::randn(shape, generator, at::TensorOptions(at::kFloat));
}

// Largest difference over the largest value.
inline double relative_error(const at::Tensor& got, const at::Tensor& wanted) {
  const at::Tensor a = got.cpu().to(at::kDouble), b = wanted.cpu().to(at::kDouble);
  return (a - b).abs().max().item<double>() / std::max(1e-30, b.abs().max().item<double>());
}

}  // namespace temper
