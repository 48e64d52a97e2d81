#include "model/matmul.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

#include "model/cpu_dispatch.h"

namespace temper {
namespace {

std::vector<at::ScalarType> compute_dtypes() {
  std::vector<at::ScalarType> dtypes = {at::kFloat};
  if (cpu_has_bf16()) dtypes.push_back(at::kBFloat16);
  return dtypes;
}

at::Tensor random(at::IntArrayRef shape, uint64_t seed) {
  return at::randn(shape, at::detail::createCPUGenerator(seed), at::TensorOptions(at::kFloat));
}

// The exact product of the rounded operands.
at::Tensor exact(const at::Tensor& x, const at::Tensor& weight, at::ScalarType compute) {
  return at::matmul(x.to(compute).to(at::kDouble), weight.to(compute).to(at::kDouble).t());
}

void expect_close(const at::Tensor& got, const at::Tensor& wanted, double tolerance) {
  const double worst = (got.to(at::kDouble) - wanted).abs().max().item<double>();
  EXPECT_LE(worst, tolerance * wanted.abs().max().item<double>());
}

TEST(PackedMatrix, MultipliesAsTheExactProductDoes) {
  for (const auto compute : compute_dtypes())
    for (const auto& [rows, inputs, outputs] :
         std::vector<std::array<int64_t, 3>>{{1, 64, 64}, {3, 7, 5}, {65, 130, 259}, {200, 576, 192}, {33, 1, 1}}) {
      const at::Tensor x = random({rows, inputs}, 1), weight = random({outputs, inputs}, 2),
                       bias = random({outputs}, 3);
      PackedMatrix packed;
      packed.pack(weight, compute);
      const at::Tensor wanted = exact(x, weight, compute);
      expect_close(packed.multiply(x.to(compute), at::kFloat), wanted, 4e-6);
      expect_close(packed.multiply(x.to(compute), at::kFloat, bias), wanted + bias, 4e-6);
      at::Tensor sum = random({rows, outputs}, 4);
      const at::Tensor before = sum.clone();
      packed.multiply_add(x.to(compute), sum);
      expect_close(sum, wanted + before, 4e-6);
      PackedMatrix transposed;
      transposed.pack_transposed(weight.t().contiguous(), compute);
      PackedMatrix rounded;  // of weights that are of the compute dtype already
      rounded.pack(weight.to(compute), compute);
      PackedMatrix rounded_transposed;
      rounded_transposed.pack_transposed(weight.to(compute).t().contiguous(), compute);
      for (const PackedMatrix* same : {&transposed, &rounded, &rounded_transposed})
        EXPECT_TRUE(at::equal(same->multiply(x.to(compute), at::kFloat), packed.multiply(x.to(compute), at::kFloat)));
      if (compute == at::kBFloat16) expect_close(packed.multiply(x.to(compute), at::kBFloat16), wanted, 1.0 / 256);
    }
}

// The residual stream of a real model holds single values of tens of thousands, to which each block adds little: a sum
// that is rounded there once a piece loses a digit over 30 layers.
TEST(PackedMatrix, RoundsASumOntoALargeValueOnce) {
  constexpr double kHalfUlp = 0x1p-10;  // of floats from 2^14 to 2^15
  for (const int64_t inputs : {64, 576, 1536}) {
    const at::Tensor x = random({35, inputs}, 13), weight = random({70, inputs}, 14).div_(40);
    PackedMatrix packed;
    packed.pack(weight, at::kFloat);
    const at::Tensor before = random({35, 70}, 15).add_(23795);
    at::Tensor sum = before.clone();
    packed.multiply_add(x, sum);
    const at::Tensor wanted = before.to(at::kDouble) + exact(x, weight, at::kFloat);
    EXPECT_LE((sum.to(at::kDouble) - wanted).abs().max().item<double>(), kHalfUlp * 1.02) << inputs << " inputs";
  }
}

TEST(PackedMatrix, RowDoesNotDependOnItsNeighboursNorOnThreads) {
  for (const auto compute : compute_dtypes()) {
    PackedMatrix packed;
    packed.pack(random({192, 96}, 5), compute);
    const at::Tensor x = random({131, 96}, 6).to(compute);
    const at::Tensor all = packed.multiply(x, at::kFloat);
    for (const int64_t count : {1, 2, 5, 31, 64, 100})
      for (const int64_t first : {0, 17, 31})
        EXPECT_TRUE(at::equal(packed.multiply(x.narrow(0, first, count), at::kFloat), all.narrow(0, first, count)))
            << "rows " << first << " to " << first + count;
    const int threads = at::get_num_threads();
    at::set_num_threads(1);
    EXPECT_TRUE(at::equal(packed.multiply(x, at::kFloat), all));
    at::set_num_threads(threads);
  }
}

// One to seven rows take another kernel where the CPU has one (few_rows_product.h).
TEST(PackedMatrix, FewRowsHaveTheBitsThatTheyHaveAmongMany) {
  for (const auto compute : compute_dtypes())
    for (const int64_t inputs : {7, 96, 1537})
      for (const int64_t outputs : {64, 300}) {
        PackedMatrix packed;
        packed.pack(random({outputs, inputs}, 16), compute);
        const at::Tensor x = random({64, inputs}, 17).to(compute), bias = random({outputs}, 18);
        const at::Tensor before = random({64, outputs}, 19).mul_(100);
        at::Tensor all_added = before.clone();
        packed.multiply_add(x, all_added);
        for (const auto out_dtype : {at::kFloat, compute}) {
          const at::Tensor all = packed.multiply(x, out_dtype, bias);
          for (int64_t count = 1; count < 8; ++count)
            EXPECT_TRUE(at::equal(packed.multiply(x.narrow(0, 9, count), out_dtype, bias), all.narrow(0, 9, count)))
                << count << " rows of " << inputs << " inputs, " << outputs << " outputs";
        }
        for (int64_t count = 1; count < 8; ++count) {
          at::Tensor added = before.narrow(0, 9, count).clone();
          packed.multiply_add(x.narrow(0, 9, count), added);
          EXPECT_TRUE(at::equal(added, all_added.narrow(0, 9, count)))
              << count << " rows added, " << inputs << " inputs, " << outputs << " outputs";
        }
      }
}

TEST(PackedMatrix, HalvesOfTilesGiveTheSameBits) {
  // 5 and 33 tiles: odd numbers, which two threads share out in halves.
  for (const auto compute : compute_dtypes())
    for (const int64_t outputs : {300, 320, 2112})
      for (const auto out_dtype : {at::kFloat, compute}) {
        PackedMatrix packed;
        packed.pack(random({outputs, 96}, 13), compute);
        const at::Tensor x = random({70, 96}, 14).to(compute), bias = random({outputs}, 15);
        const int threads = at::get_num_threads();
        std::vector<at::Tensor> results;
        for (const int count : {1, 2, 3}) {
          at::set_num_threads(count);
          results.push_back(packed.multiply(x, out_dtype, bias));
          at::Tensor sum = at::ones({70, outputs});
          packed.multiply_add(x, sum);
          results.push_back(sum);
        }
        at::set_num_threads(threads);
        for (size_t i = 2; i < results.size(); ++i) EXPECT_TRUE(at::equal(results[i], results[i - 2])) << outputs;
      }
}

// The weights that int8 stands for: scale · round(weight / scale), scale = largest / 127 of the output's row.
at::Tensor rounded_to_int8(const at::Tensor& weight) {
  const at::Tensor scale = weight.to(at::kDouble).abs().amax(1, /*keepdim=*/true) / 127;
  return (weight.to(at::kDouble) / scale).round().mul_(scale);
}

TEST(PackedMatrix, Int8StandsForWeightsRoundedToAScaleOfEachRow) {
  for (const CpuLevel level : {CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512})
    for (const auto compute : compute_dtypes()) {
      limit_cpu_level(level);
      for (const auto& [rows, inputs, outputs] :
           std::vector<std::array<int64_t, 3>>{{1, 64, 64}, {3, 7, 5}, {65, 130, 259}, {200, 576, 192}}) {
        const at::Tensor x = random({rows, inputs}, 21).to(compute), bias = random({outputs}, 22);
        at::Tensor weight = random({outputs, inputs}, 23) * random({outputs, 1}, 24);
        PackedMatrix packed;
        packed.pack(weight, compute, WeightFormat::kInt8);
        const at::Tensor wanted = at::matmul(x.to(at::kDouble), rounded_to_int8(weight).t());
        expect_close(packed.multiply(x, at::kFloat), wanted, 4e-6);
        expect_close(packed.multiply(x, at::kFloat, bias), wanted + bias, 4e-6);
        at::Tensor sum = at::ones({rows, outputs});
        packed.multiply_add(x, sum);
        expect_close(sum, wanted + 1, 4e-6);
        const at::Tensor first = packed.multiply(x, at::kFloat);
        for (const int64_t count : {int64_t{1}, (rows + 1) / 2})
          EXPECT_TRUE(at::equal(packed.multiply(x.narrow(0, 0, count), at::kFloat), first.narrow(0, 0, count)));
      }
    }
  limit_cpu_level(CpuLevel::kAvx512);
}

TEST(PackedMatrix, Int8RowOfZerosGivesZeros) {
  at::Tensor weight = random({70, 32}, 25);
  weight[3].zero_();
  PackedMatrix packed;
  packed.pack(weight, at::kFloat, WeightFormat::kInt8);
  const at::Tensor product = packed.multiply(random({5, 32}, 26), at::kFloat);
  EXPECT_TRUE(at::equal(product.select(1, 3), at::zeros({5})));
  packed.pack(weight, at::kFloat);  // and the format may change from call to call
  expect_close(packed.multiply(random({5, 32}, 26), at::kFloat), exact(random({5, 32}, 26), weight, at::kFloat), 4e-6);
}

TEST(PackedMatrix, PartsOfColumnsAndOfInputsAgreeWithTheWhole) {
  for (const auto compute : compute_dtypes()) {
    const at::Tensor weight = random({323, 64}, 7), x = random({9, 64}, 8).to(compute);
    PackedMatrix packed;
    packed.pack(weight, compute);
    const at::Tensor all = packed.multiply(x, at::kFloat);
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 128}, {128, 256}, {256, 323}}) {
      at::Tensor part = at::empty({9, end - begin});
      packed.multiply_columns(x, begin, end, part);
      EXPECT_TRUE(at::equal(part, all.narrow(1, begin, end - begin)));
    }
    PackedMatrix backward;
    backward.pack_transposed(weight, compute);  // dy [9, 323] · weight
    const at::Tensor dy = random({9, 323}, 9).to(compute);
    at::Tensor sum = at::zeros({9, 64});
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 128}, {128, 256}, {256, 323}})
      backward.multiply_add_inputs(dy.narrow(1, begin, end - begin), begin, sum);
    expect_close(sum, at::matmul(dy.to(at::kDouble), weight.to(compute).to(at::kDouble)), 4e-6);
  }
}

TEST(AccumulateOuterProduct, AddsTheExactSumOverTokens) {
  for (const auto dtype : compute_dtypes())
    for (const auto& [tokens, outputs, inputs] :
         std::vector<std::array<int64_t, 3>>{{1, 64, 64}, {70, 5, 7}, {300, 130, 96}, {513, 64, 67}}) {
      const at::Tensor dy = random({tokens, outputs}, 10).to(dtype), x = random({tokens, inputs}, 11).to(dtype);
      at::Tensor grad = random({outputs, inputs}, 12);
      const at::Tensor wanted = grad.to(at::kDouble) + at::matmul(dy.to(at::kDouble).t(), x.to(at::kDouble));
      accumulate_outer_product(dy, x, grad);
      expect_close(grad, wanted, 4e-6);
    }
}

}  // namespace
}  // namespace temper
