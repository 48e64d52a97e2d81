#include "model/elementwise.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "model/cpu_dispatch.h"
#include "model/elementwise_device.h"
#include "tests/model/tensors.h"

namespace temper {
namespace {

// Largest difference relative to the largest value.
double relative_error(const at::Tensor& ours, const at::Tensor& exact) {
  return ((ours.to(at::kDouble) - exact.to(at::kDouble)).abs().max() / exact.to(at::kDouble).abs().max())
      .item<double>();
}

using Tensors = std::vector<at::Tensor>;

// f of the inputs and the gradients of all inputs for a fixed gradient of the result.
template <class F>
Tensors with_gradients(const Tensors& inputs, const F& f) {
  Tensors leaves;
  for (const at::Tensor& input : inputs) leaves.push_back(input.detach().clone().set_requires_grad(true));
  const at::Tensor out = f(leaves);
  Tensors result =
      torch::autograd::grad({out}, leaves, {randn(out.sizes(), 99).to(at::kBFloat16).to(out.scalar_type())});
  result.insert(result.begin(), out.detach());
  return result;
}

Tensors to_double(const Tensors& inputs) {
  Tensors result;
  for (const at::Tensor& input : inputs) result.push_back(input.to(at::kDouble));
  return result;
}

void expect_close(const Tensors& ours, const Tensors& exact, const std::string& what) {
  ASSERT_EQ(ours.size(), exact.size());
  for (size_t i = 0; i < ours.size(); ++i) {
    const double bound = ours[i].scalar_type() == at::kBFloat16 ? 1.0 / 256 : 2e-6;
    EXPECT_LT(relative_error(ours[i], exact[i]), bound) << what << ", tensor " << i;
  }
}

struct Angles {
  at::Tensor cos, sin;
};
Angles angles(int64_t positions, int64_t half) {
  const at::Tensor angle = at::arange(positions, at::kFloat).unsqueeze(1) *
                           at::pow(10000.0, -at::arange(half, at::kFloat) / static_cast<double>(half)).unsqueeze(0);
  return {angle.cos(), angle.sin()};
}

class ElementwiseAtEveryLevel : public testing::TestWithParam<CpuLevel> {
 protected:
  // One thread: other tests show that threads change nothing, and barriers are slow on a busy machine.
  void SetUp() override {
    at::set_num_threads(1);
    limit_cpu_level(GetParam());
  }
  void TearDown() override {
    at::set_num_threads(num_threads_);
    limit_cpu_level(CpuLevel::kAvx512);
  }
  const int num_threads_ = at::get_num_threads();
};
INSTANTIATE_TEST_SUITE_P(Levels, ElementwiseAtEveryLevel,
                         testing::Values(CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512));

TEST_P(ElementwiseAtEveryLevel, RmsNormAndItsGradientsEqualTheReference) {
  for (const auto& shape :
       std::vector<std::vector<int64_t>>{{1, 4}, {5, 7}, {130, 576}, {3, 100}, {17, 3, 64}, {200, 2, 20}})
    for (const at::ScalarType in : {at::kFloat, at::kBFloat16})
      for (const at::ScalarType out : {at::kFloat, at::kBFloat16}) {
        const Tensors inputs = {randn(shape, 1, in), randn({shape.back()}, 2)};
        const auto ours = with_gradients(inputs, [&](const Tensors& x) { return rms_norm(x[0], x[1], 1e-5, out); });
        const auto exact = with_gradients(
            to_double(inputs), [&](const Tensors& x) { return reference::rms_norm(x[0], x[1], 1e-5, at::kDouble); });
        EXPECT_EQ(ours[0].scalar_type(), out);
        expect_close(ours, exact, "rms_norm");
      }
}

TEST_P(ElementwiseAtEveryLevel, RopeAndItsGradientEqualTheReference) {
  for (const int64_t dim : {2, 8, 32, 64, 80, 128})
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const Angles table = angles(50, dim / 2);
      const at::Tensor positions = at::randint(0, 50, {23}, at::detail::createCPUGenerator(1), at::kLong);
      const auto ours = with_gradients({randn({23, 3, dim}, 1, dtype)}, [&](const Tensors& x) {
        return apply_rope(x[0], table.cos, table.sin, positions);
      });
      const auto exact = with_gradients({randn({23, 3, dim}, 1, dtype).to(at::kDouble)}, [&](const Tensors& x) {
        return reference::apply_rope(x[0], table.cos.to(at::kDouble), table.sin.to(at::kDouble), positions);
      });
      expect_close(ours, exact, "rope");
    }
}

TEST_P(ElementwiseAtEveryLevel, NormAndRopeOfTheFusedProductEqualTheReference) {
  for (const int64_t dim : {16, 64, 20})
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      const Angles table = angles(200, dim / 2);
      const at::Tensor positions = at::randint(0, 200, {150}, at::detail::createCPUGenerator(1), at::kLong);
      const Tensors inputs = {randn({150, 10, dim}, 1, dtype), randn({dim}, 2), randn({dim}, 3)};
      const auto exact = with_gradients(to_double(inputs), [&](const Tensors& x) {
        return reference::norm_rope_qkv(x[0], 6, 2, x[1], x[2], 1e-6, table.cos.to(at::kDouble),
                                        table.sin.to(at::kDouble), positions);
      });
      const auto ours = with_gradients(inputs, [&](const Tensors& x) {
        return norm_rope_qkv(x[0], 6, 2, x[1], x[2], 1e-6, table.cos, table.sin, positions);
      });
      expect_close(ours, exact, "norm_rope_qkv");

      const auto plain = with_gradients({inputs[0]}, [&](const Tensors& x) {
        return norm_rope_qkv(x[0], 6, 2, {}, {}, 1e-6, table.cos, table.sin, positions);
      });
      const auto plain_exact = with_gradients({inputs[0].to(at::kDouble)}, [&](const Tensors& x) {
        return reference::norm_rope_qkv(x[0], 6, 2, {}, {}, 1e-6, table.cos.to(at::kDouble), table.sin.to(at::kDouble),
                                        positions);
      });
      expect_close(plain, plain_exact, "norm_rope_qkv without norms");
      EXPECT_TRUE(at::equal(plain[0].narrow(1, 8, 2), inputs[0].narrow(1, 8, 2)));
    }
}

TEST_P(ElementwiseAtEveryLevel, SiluMulAndItsGradientEqualTheReference) {
  for (const auto& [rows, size] : std::vector<std::pair<int64_t, int64_t>>{{1, 1}, {9, 13}, {70, 1536}, {3, 48}})
    for (const at::ScalarType in : {at::kFloat, at::kBFloat16})
      for (const at::ScalarType out : {at::kFloat, at::kBFloat16}) {
        const Tensors inputs = {(randn({rows, 2 * size}, 1) * 5).to(in)};
        const auto ours = with_gradients(inputs, [&](const Tensors& x) { return silu_mul(x[0], out); });
        const auto exact =
            with_gradients(to_double(inputs), [&](const Tensors& x) { return reference::silu_mul(x[0], at::kDouble); });
        EXPECT_EQ(ours[0].scalar_type(), out);
        expect_close(ours, exact, "silu_mul");
      }
}

TEST_P(ElementwiseAtEveryLevel, Bf16RoundsToTheNearestEvenAsLibTorchDoes) {
  // Every upper half with lower halves around the tie, through a silu_mul that multiplies by silu(gate) = gate for
  // large gates.
  std::vector<float> values;
  for (uint32_t upper = 0; upper < 0x8000; upper += 37)
    for (const uint32_t lower : {0x0u, 0x7fffu, 0x8000u, 0x8001u, 0xffffu}) {
      const uint32_t bits = (upper << 16) | lower;
      float value;
      std::memcpy(&value, &bits, 4);
      if (std::isfinite(value) && value < 1e30f) values.push_back(value);
    }
  const at::Tensor up = at::tensor(values).unsqueeze(0), gate = at::full_like(up, 64.0f);
  const at::Tensor wide = silu_mul(at::cat({gate, up}, 1), at::kFloat);
  EXPECT_TRUE(at::equal(wide, up * 64));
  EXPECT_TRUE(at::equal(silu_mul(at::cat({gate, up}, 1), at::kBFloat16), wide.to(at::kBFloat16)));
}

TEST(Elementwise, SiluOfHugeGatesIsFiniteAndOfNanIsNan) {
  const at::Tensor gate_up =
      at::tensor({-1e30f, -200.0f, 0.0f, 200.0f, 1e30f, std::nanf(""), 1.0f, 1.0f, 1.0f, 1.0f, 1.0f, 1.0f})
          .view({1, 12});
  const at::Tensor out = silu_mul(gate_up, at::kFloat);
  EXPECT_TRUE(at::isfinite(out.narrow(1, 0, 5)).all().item<bool>());
  EXPECT_EQ(out[0][3].item<float>(), 200.0f);
  EXPECT_EQ(out[0][4].item<float>(), 1e30f);
  EXPECT_NEAR(out[0][1].item<float>(), 0, 1e-30);
  EXPECT_TRUE(std::isnan(out[0][5].item<float>()));
}

TEST(Elementwise, RmsNormOfOnesIsTheWeight) {
  const at::Tensor weight = at::tensor({0.5f, -2.0f, 3.0f});
  EXPECT_TRUE(at::equal(rms_norm(at::ones({2, 3}), weight, 0, at::kFloat), weight.expand({2, 3})));
}

TEST(Elementwise, RopeTurnsByHandWorkedAngles) {
  // cos 0, sin 1: a quarter turn takes (a, b) to (-b, a).
  const at::Tensor x = at::tensor({1.0f, 2.0f, 3.0f, 4.0f}).view({1, 1, 4});
  const at::Tensor out = apply_rope(x, at::zeros({1, 2}), at::ones({1, 2}), at::zeros({1}, at::kLong));
  EXPECT_TRUE(at::equal(out.flatten(), at::tensor({-3.0f, -4.0f, 1.0f, 2.0f})));
}

TEST(Elementwise, StridedHeadsGiveTheNumbersOfACopy) {
  const at::Tensor wide = randn({40, 5, 64}, 1), view = wide.narrow(1, 1, 3), weight = randn({64}, 2);
  const Angles table = angles(40, 32);
  const at::Tensor positions = at::arange(40, at::kLong);
  EXPECT_TRUE(
      at::equal(rms_norm(view, weight, 1e-6, at::kFloat), rms_norm(view.contiguous(), weight, 1e-6, at::kFloat)));
  EXPECT_TRUE(at::equal(apply_rope(view, table.cos, table.sin, positions),
                        apply_rope(view.contiguous(), table.cos, table.sin, positions)));
  const at::Tensor rows = randn({8, 100}, 3).narrow(1, 10, 60);
  EXPECT_TRUE(at::equal(silu_mul(rows, at::kFloat), silu_mul(rows.contiguous(), at::kFloat)));
}

TEST(Elementwise, ThreadsAndNeighboursDoNotChangeABit) {
  const int before = at::get_num_threads();
  const Tensors inputs = {randn({700, 576}, 1), randn({576}, 2)};
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    auto results = with_gradients(inputs, [](const Tensors& x) { return rms_norm(x[0], x[1], 1e-5, at::kBFloat16); });
    const auto silu = with_gradients({inputs[0]}, [](const Tensors& x) { return silu_mul(x[0], at::kFloat); });
    const Angles table = angles(700, 32);
    const auto rope =
        with_gradients({inputs[0].view({700, 9, 64}), randn({64}, 3), randn({64}, 4)}, [&](const Tensors& x) {
          return norm_rope_qkv(x[0], 5, 2, x[1], x[2], 1e-5, table.cos, table.sin, at::arange(700, at::kLong));
        });
    results.insert(results.end(), silu.begin(), silu.end());
    results.insert(results.end(), rope.begin(), rope.end());
    return results;
  };
  const Tensors one = run(1), two = run(2), three = run(3);
  at::set_num_threads(before);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], two[i]) && at::equal(one[i], three[i])) << i;
  // A row alone
  EXPECT_TRUE(
      at::equal(rms_norm(inputs[0].narrow(0, 333, 1), inputs[1], 1e-5, at::kBFloat16), one[0].narrow(0, 333, 1)));
}

TEST(Elementwise, EmptyBatchesPassThrough) {
  const at::Tensor none = at::empty({0, 64});
  const Tensors norm =
      with_gradients({none, at::ones({64})}, [](const Tensors& x) { return rms_norm(x[0], x[1], 1e-5, at::kFloat); });
  EXPECT_EQ(norm[0].numel(), 0);
  EXPECT_EQ(norm[2].abs().sum().item<float>(), 0);
  EXPECT_EQ(silu_mul(none, at::kFloat).size(1), 32);
}

TEST(Elementwise, APositionBeyondTheTableIsRefusedWithItsNumbers) {
  try {
    apply_rope(at::ones({2, 1, 4}), at::ones({8, 2}), at::ones({8, 2}), at::arange(2, at::kLong) * 5 + 3);
    FAIL();
  } catch (const InvariantError& error) {
    EXPECT_NE(std::string(error.what()).find("position 8 of token 1 lies outside the 8"), std::string::npos)
        << error.what();
  }
}

// The GPU's way, which takes CPU tensors as well.
TEST(ElementwiseOnDevices, EqualsTheReferenceAndItsGradients) {
  const Angles table = angles(40, 8);
  const at::Tensor positions = at::arange(13, at::kLong) * 3, weight = randn({16}, 3) + 1, wide = randn({24}, 4);
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    const Tensors norm_inputs = {randn({13, 24}, 1, dtype), wide};
    expect_close(
        with_gradients(norm_inputs, [&](const Tensors& x) { return device::rms_norm(x[0], x[1], 1e-5, dtype); }),
        with_gradients(to_double(norm_inputs),
                       [&](const Tensors& x) { return reference::rms_norm(x[0], x[1], 1e-5, at::kDouble); }),
        "rms_norm");
    const Tensors gates = {randn({13, 48}, 2, dtype)};
    expect_close(
        with_gradients(gates, [&](const Tensors& x) { return device::silu_mul(x[0], dtype); }),
        with_gradients(to_double(gates), [](const Tensors& x) { return reference::silu_mul(x[0], at::kDouble); }),
        "silu_mul");
    const Tensors plain = {randn({13, 7, 16}, 5, dtype)}, normed = {plain[0], weight, weight * 2};
    expect_close(with_gradients(plain,
                                [&](const Tensors& x) {
                                  return device::norm_rope_qkv(x[0], 3, 2, {}, {}, 0, table.cos, table.sin, positions);
                                }),
                 with_gradients(to_double(plain),
                                [&](const Tensors& x) {
                                  return reference::norm_rope_qkv(x[0], 3, 2, {}, {}, 0, table.cos, table.sin,
                                                                  positions);
                                }),
                 "rope");
    if (dtype == at::kBFloat16) continue;  // rounded between norm and rotation, unlike the reference
    expect_close(
        with_gradients(normed,
                       [&](const Tensors& x) {
                         return device::norm_rope_qkv(x[0], 3, 2, x[1], x[2], 1e-5, table.cos, table.sin, positions);
                       }),
        with_gradients(to_double(normed),
                       [&](const Tensors& x) {
                         return reference::norm_rope_qkv(x[0], 3, 2, x[1], x[2], 1e-5, table.cos, table.sin, positions);
                       }),
        "norm and rope");
  }
}

}  // namespace
}  // namespace temper
