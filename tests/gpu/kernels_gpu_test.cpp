// Products, attention, log-probabilities and the optimiser on a GPU against the CPU's.
#include <torch/csrc/autograd/autograd.h>

#include "model/attention.h"
#include "model/matmul.h"
#include "model/token_logprobs.h"
#include "tests/gpu/gpu_test_support.h"
#include "trainer/adamw.h"

namespace temper {
namespace {

using KernelsOnGpu = OnGpu;

at::Tensor bf16_values(const at::Tensor& x) { return x.to(at::kBFloat16).to(at::kFloat); }

TEST_F(KernelsOnGpu, ProductsSumBf16InF32) {
  const at::Tensor x = bf16_values(random_tensor({37, 96}, 1)), w = bf16_values(random_tensor({130, 96}, 2));
  const at::Tensor dy = bf16_values(random_tensor({37, 130}, 3)), bias = random_tensor({130}, 4);
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    PackedMatrix forward;
    forward.pack(w.to(gpu()), compute);
    const PackedMatrix backward = forward.transposed();
    const at::Tensor on_gpu = x.to(gpu(), compute), dy_on_gpu = dy.to(gpu(), compute);
    EXPECT_LT(relative_error(forward.multiply(on_gpu, at::kFloat), x.mm(w.t())), 1e-5);
    EXPECT_LT(relative_error(forward.multiply(on_gpu, at::kFloat, bias.to(gpu())), x.mm(w.t()) + bias), 1e-5);
    EXPECT_LT(relative_error(forward.multiply(on_gpu, at::kBFloat16), x.mm(w.t())), 4e-3);
    EXPECT_LT(relative_error(backward.multiply(dy_on_gpu, at::kFloat), dy.mm(w)), 1e-5);
    at::Tensor sum = at::ones({37, 130}, at::TensorOptions(gpu())), columns = at::empty({37, 66}, sum.options());
    forward.multiply_add(on_gpu, sum);
    EXPECT_LT(relative_error(sum, x.mm(w.t()) + 1), 1e-5);
    forward.multiply_columns(on_gpu, 64, 130, columns);
    EXPECT_LT(relative_error(columns, x.mm(w.t()).narrow(1, 64, 66)), 1e-5);
    at::Tensor inputs = at::ones({37, 96}, sum.options());
    backward.multiply_add_inputs(dy_on_gpu.narrow(1, 64, 66), 64, inputs);
    EXPECT_LT(relative_error(inputs, dy.narrow(1, 64, 66).mm(w.narrow(0, 64, 66)) + 1), 1e-5);
    at::Tensor gradient = at::ones({130, 96}, sum.options());
    accumulate_outer_product(dy_on_gpu, on_gpu, gradient);
    EXPECT_LT(relative_error(gradient, dy.t().mm(x) + 1), 1e-5);
  }
}

TEST_F(KernelsOnGpu, Int8WeightsAreTheCpus) {
  const at::Tensor x = bf16_values(random_tensor({5, 64}, 1)), w = random_tensor({100, 64}, 2);
  PackedMatrix here, there;
  here.pack(w, at::kFloat, WeightFormat::kInt8);
  there.pack(w.to(gpu()), at::kFloat, WeightFormat::kInt8);
  EXPECT_LT(relative_error(there.multiply(x.to(gpu()), at::kFloat), here.multiply(x, at::kFloat)), 1e-5);
}

struct Gradients {
  at::Tensor out, dqkv;
};
Gradients attend(const at::Tensor& qkv, const at::Tensor& grad, const std::vector<AttentionSegment>& segments) {
  const at::Tensor leaf = qkv.detach().clone().set_requires_grad(true);
  const at::Tensor out = packed_attention_qkv(leaf, 6, 2, segments, 0.25);
  return {out.detach(), torch::autograd::grad({out}, {leaf}, {grad.to(out.options())})[0]};
}

TEST_F(KernelsOnGpu, PackedAttentionAndItsGradientsAreTheCpus) {
  // A group, a plain sequence, a prefix of another length, and two rows of padding.
  const std::vector<AttentionSegment> segments = {{0, 21, 0, 0},       {21, 40, 0, 21},  {40, 41, 0, 21},
                                                  {41, 131, 0, 21},    {131, 132, 0, 0}, {132, 196, 0, 0},
                                                  {196, 213, 132, 196}};
  const at::Tensor qkv = bf16_values(random_tensor({215, 10, 64}, 5)),
                   grad = bf16_values(random_tensor({215, 6, 64}, 6));
  const Gradients wanted = attend(qkv, grad, segments);
  const Gradients f32 = attend(qkv.to(gpu()), grad, segments);
  EXPECT_LT(relative_error(f32.out, wanted.out), 1e-5);
  EXPECT_LT(relative_error(f32.dqkv, wanted.dqkv), 1e-5);
  const Gradients flash = attend(qkv.to(gpu(), at::kBFloat16), grad, segments);
  EXPECT_LT(relative_error(flash.out, wanted.out), 1e-2);
  EXPECT_LT(relative_error(flash.dqkv, wanted.dqkv), 2e-2);
  EXPECT_EQ(flash.out.narrow(0, 213, 2).abs().max().item<float>(), 0);
  EXPECT_EQ(flash.dqkv.narrow(0, 213, 2).abs().max().item<float>(), 0);
}

TEST_F(KernelsOnGpu, PagedAttentionIsThePackedOne) {
  // Two sequences with a block in common: one is prefilled from position 24 on, one decodes its 41st token.
  const std::vector<int32_t> first = {3, 1, 7}, second = {3, 0, 5};
  const int64_t lengths[] = {45, 41}, num_new[] = {21, 1};
  const at::Tensor common = random_tensor({16, 4, 64}, 7);
  std::vector<at::Tensor> keys_and_values;
  for (int i = 0; i < 2; ++i)
    keys_and_values.push_back(bf16_values(at::cat({common, random_tensor({lengths[i] - 16, 4, 64}, 8 + i)})));
  const at::Tensor q = bf16_values(random_tensor({22, 6, 64}, 10));
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    KvCache cache = make_kv_cache(8, 2, 16, 64, at::TensorOptions(gpu()).dtype(dtype));
    std::vector<PagedSequence> sequences;
    at::Tensor wanted = at::empty({22, 6, 64});
    for (int i = 0; i < 2; ++i) {
      const std::vector<int32_t>& blocks = i == 0 ? first : second;
      std::vector<int64_t> slots;
      for (int64_t p = 0; p < lengths[i]; ++p) slots.push_back(blocks[p / 16] * 16 + p % 16);
      const at::Tensor kv = keys_and_values[i];
      store_kv(kv.narrow(1, 0, 2).to(gpu(), dtype), kv.narrow(1, 2, 2).to(gpu(), dtype), at::tensor(slots, at::kLong),
               cache);
      const int64_t row = i == 0 ? 0 : 21;
      sequences.push_back({blocks.data(), lengths[i], num_new[i], row});
      const at::Tensor padded = at::cat({at::zeros({lengths[i] - num_new[i], 6, 64}), q.narrow(0, row, num_new[i])});
      wanted.narrow(0, row, num_new[i])
          .copy_(packed_attention(padded, kv.narrow(1, 0, 2), kv.narrow(1, 2, 2), {{0, lengths[i], 0, 0}}, 0.125)
                     .narrow(0, lengths[i] - num_new[i], num_new[i]));
    }
    at::Tensor out = at::empty({22, 6, 64}, at::TensorOptions(gpu()).dtype(dtype));
    paged_attention(q.to(gpu(), dtype), cache, sequences, 0.125, out);
    EXPECT_LT(relative_error(out, wanted), dtype == at::kFloat ? 1e-5 : 1e-2);
  }
}

TEST_F(KernelsOnGpu, LogprobsEntropiesAndGradientsAreTheCpus) {
  const at::Tensor hidden = random_tensor({19, 48}, 11), weight = random_tensor({5000, 48}, 12) * 0.3;
  const at::Tensor targets = at::arange(19, at::kLong) * 250;
  const auto run = [&](at::Device device) {
    LinearWeights head;
    head.load(weight.to(device), {}, at::kFloat, /*trainable=*/true);
    head.weight_grad = at::zeros({5000, 48}, at::TensorOptions(device));
    const at::Tensor leaf = hidden.to(device).clone().set_requires_grad(true);
    const TokenLogprobs result = token_logprobs(leaf, targets, head, 0.7, /*entropy_gradient=*/true);
    const at::Tensor gradient = torch::autograd::grad({(result.logprobs * 2 + result.entropies).sum()}, {leaf})[0];
    return std::vector<at::Tensor>{result.logprobs.detach(), result.entropies.detach(), gradient, head.weight_grad};
  };
  const auto here = run(at::kCPU), there = run(gpu());
  for (size_t i = 0; i < here.size(); ++i) EXPECT_LT(relative_error(there[i], here[i]), 2e-5) << i;
}

TEST_F(KernelsOnGpu, AdamWFollowsTheCpus) {
  const std::vector<ParameterSpec> layout = {{"a", {33, 7}, 0}, {"b", {40}, 240}};
  const AdamWSettings settings{0.9, 0.95, 1e-8, 0.1};
  const at::Tensor start = random_tensor({288}, 13);
  FlatParameters here(layout, start.clone()), there = FlatParameters(layout, start.clone()).to(gpu());
  const ShardPlan all(layout, Shard::kNone, 0, 1);
  AdamW on_cpu(layout, settings, all), on_gpu(layout, settings, all, gpu());
  for (int step = 0; step < 5; ++step) {
    FlatParameters gradient(layout, random_tensor({288}, 20 + step));
    const FlatParameters copy(layout, gradient.flat().to(gpu(), at::kFloat, false, /*copy=*/true));
    EXPECT_NEAR(global_norm(copy.flat()), global_norm(gradient.flat()), 1e-6);
    on_cpu.step({{0, here.flat()}}, {{0, gradient.flat()}}, 1e-2, 0.5);
    on_gpu.step({{0, there.flat()}}, {{0, copy.flat()}}, 1e-2, 0.5);
    EXPECT_EQ(copy.flat().abs().max().item<float>(), 0);
  }
  for (const ParameterSpec& spec : layout) EXPECT_LT(relative_error(there[spec.name], here[spec.name]), 1e-5);
  const FlatParameters moments_on_gpu(layout, on_gpu.exp_avg_sq().front().elements);
  const FlatParameters moments_on_cpu(layout, on_cpu.exp_avg_sq().front().elements);
  for (const ParameterSpec& spec : layout)
    EXPECT_LT(relative_error(moments_on_gpu[spec.name], moments_on_cpu[spec.name]), 1e-5);
}

}  // namespace
}  // namespace temper
