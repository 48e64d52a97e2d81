#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include "core/error.h"
#include "model/attention_device.h"
#include "model/cpu_dispatch.h"
#include "tests/model/tensors.h"

namespace temper {
namespace {

using Segments = std::vector<AttentionSegment>;

// A batch with everything in it: a group's prompt with completions, a plain sequence, single tokens, odd lengths,
// prefixes that end inside, at and before a panel's or a tile's edge, and two rows of padding.
Segments mixed_segments() {
  return {{0, 21, 0, 0},    {21, 40, 0, 21},      {40, 41, 0, 21},
          {41, 131, 0, 21},                                               // a prompt of 21 and three completions
          {131, 132, 0, 0},                                               // a single token
          {132, 196, 0, 0}, {196, 213, 132, 196},                         // a prefix of one whole tile
          {213, 213, 0, 0},                                               // nothing
          {213, 229, 0, 0}, {229, 232, 213, 229}, {232, 299, 213, 229}};  // a prefix of one panel
}
constexpr int64_t kMixedRows = 301;

struct Result {
  at::Tensor out, dq, dk, dv;
};

template <class Attention>
Result differentiate(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& grad,
                     const Attention& attention) {
  const at::Tensor a = q.detach().clone().set_requires_grad(true), b = k.detach().clone().set_requires_grad(true),
                   c = v.detach().clone().set_requires_grad(true);
  const at::Tensor out = attention(a, b, c);
  const auto grads = torch::autograd::grad({out}, {a, b, c}, {grad.to(out.scalar_type())});
  return {out.detach(), grads[0], grads[1], grads[2]};
}

class AttentionAtEveryLevel : public testing::TestWithParam<CpuLevel> {
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
INSTANTIATE_TEST_SUITE_P(Levels, AttentionAtEveryLevel,
                         testing::Values(CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512));

TEST_P(AttentionAtEveryLevel, PackedAttentionAndItsGradientsEqualTheReference) {
  const Segments segments = mixed_segments();
  for (const int64_t head_dim : {8, 16, 20, 32, 64, 80, 96, 128}) {
    for (const auto& [heads, kv_heads] : std::vector<std::pair<int64_t, int64_t>>{{3, 1}, {2, 2}, {14, 2}}) {
      if (heads == 14 && head_dim > 32) continue;
      const double scale = 1 / std::sqrt(static_cast<double>(head_dim));
      const at::Tensor q = randn({kMixedRows, heads, head_dim}, 1), k = randn({kMixedRows, kv_heads, head_dim}, 2),
                       v = randn({kMixedRows, kv_heads, head_dim}, 3), grad = randn(q.sizes(), 4);
      const Result ours = differentiate(q, k, v, grad, [&](const auto& a, const auto& b, const auto& c) {
        return packed_attention(a, b, c, segments, scale);
      });
      const Result exact = differentiate(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), grad,
                                         [&](const auto& a, const auto& b, const auto& c) {
                                           return reference::packed_attention(a, b, c, segments, scale);
                                         });
      EXPECT_LT(largest_error(ours.out, exact.out), 5e-6) << head_dim << " " << heads;
      EXPECT_LT(largest_error(ours.dq, exact.dq), 1e-5) << head_dim << " " << heads;
      EXPECT_LT(largest_error(ours.dk, exact.dk), 1e-5 * exact.dk.abs().max().item<double>())
          << head_dim << " " << heads;
      EXPECT_LT(largest_error(ours.dv, exact.dv), 1e-5 * exact.dv.abs().max().item<double>())
          << head_dim << " " << heads;
    }
  }
}

TEST_P(AttentionAtEveryLevel, Bf16StorageCostsOneRoundingOfTheResult) {
  const Segments segments = mixed_segments();
  const at::Tensor q = randn({kMixedRows, 6, 64}, 1, at::kBFloat16), k = randn({kMixedRows, 2, 64}, 2, at::kBFloat16),
                   v = randn({kMixedRows, 2, 64}, 3, at::kBFloat16), grad = randn(q.sizes(), 4, at::kBFloat16);
  const auto ours_of = [&](const auto& a, const auto& b, const auto& c) {
    return packed_attention(a, b, c, segments, 0.125);
  };
  const Result ours = differentiate(q, k, v, grad, ours_of);
  const Result wide = differentiate(q.to(at::kFloat), k.to(at::kFloat), v.to(at::kFloat), grad, ours_of);
  EXPECT_TRUE(at::equal(ours.out, wide.out.to(at::kBFloat16)));
  // The backward starts from the rounded output, so delta differs a little.
  EXPECT_LT(largest_error(ours.dq, wide.dq), 0.01 * wide.dq.abs().max().item<double>());
  EXPECT_LT(largest_error(ours.dk, wide.dk), 0.01 * wide.dk.abs().max().item<double>());
  EXPECT_LT(largest_error(ours.dv, wide.dv), 0.005 * wide.dv.abs().max().item<double>());
}

TEST_P(AttentionAtEveryLevel, EngineAndTrainerAgreeBitForBit) {
  // One prompt of 75 tokens, three completions; the engine has shared prompt blocks and reads them in chunks of its
  // own.
  for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t head_dim : {20, 64}) {
      const int64_t block_size = 16, heads = 6, kv_heads = 2, prompt = 75;
      const std::vector<int64_t> lengths = {30, 1, 100};
      const Segments segments = {{0, 75, 0, 0}, {75, 105, 0, 75}, {105, 106, 0, 75}, {106, 206, 0, 75}};
      const at::Tensor q = randn({206, heads, head_dim}, 1, dtype), k = randn({206, kv_heads, head_dim}, 2, dtype),
                       v = randn({206, kv_heads, head_dim}, 3, dtype);
      const at::Tensor packed = packed_attention(q, k, v, segments, 0.3);

      KvCache cache = make_kv_cache(64, kv_heads, block_size, head_dim, q.options());
      cache.k.fill_(std::nan(""));
      cache.v.fill_(std::nan(""));
      // Four whole blocks of the prompt are shared; the fifth and the rest belong to each sequence.
      std::vector<std::vector<int32_t>> tables(3);
      int32_t next_block = 10;
      for (int s = 0; s < 3; ++s) {
        tables[s] = {7, 3, 9, 1};
        while (static_cast<int64_t>(tables[s].size()) * block_size < prompt + lengths[s])
          tables[s].push_back(next_block++);
      }
      const auto slots_of = [&](int s, int64_t first, int64_t count) {
        std::vector<int64_t> slots;
        for (int64_t p = first; p < first + count; ++p)
          slots.push_back(tables[s][p / block_size] * block_size + p % block_size);
        return at::tensor(slots, at::kLong);
      };
      at::Tensor paged = at::zeros_like(q);
      for (int s = 0; s < 3; ++s) store_kv(k.slice(0, 0, prompt), v.slice(0, 0, prompt), slots_of(s, 0, prompt), cache);
      for (const auto& [first, count] : std::vector<std::pair<int64_t, int64_t>>{{0, 33}, {33, 42}})
        paged_attention(q, cache, {{tables[0].data(), first + count, count, first}}, 0.3, paged);
      int64_t begin = prompt;
      for (int s = 0; s < 3; ++s) {
        store_kv(k.slice(0, begin, begin + lengths[s]), v.slice(0, begin, begin + lengths[s]),
                 slots_of(s, prompt, lengths[s]), cache);
        begin += lengths[s];
      }
      // Decode: token t of every completion that has one, together in one call.
      for (int64_t t = 0; t < 100; ++t) {
        std::vector<PagedSequence> step;
        for (int s = 0; s < 3; ++s)
          if (t < lengths[s]) step.push_back({tables[s].data(), prompt + t + 1, 1, segments[s + 1].begin + t});
        paged_attention(q, cache, step, 0.3, paged);
      }
      EXPECT_TRUE(at::equal(packed, paged)) << dtype << " " << head_dim << " " << largest_error(packed, paged);
    }
  }
}

TEST(PackedAttention, FusedProductGivesTheSameNumbersAndOneGradient) {
  const Segments segments = mixed_segments();
  const at::Tensor qkv = randn({kMixedRows, 10, 64}, 5).set_requires_grad(true);
  const at::Tensor grad = randn({kMixedRows, 6, 64}, 6);
  const at::Tensor fused = packed_attention_qkv(qkv, 6, 2, segments, 0.125);
  const at::Tensor fused_grad = torch::autograd::grad({fused}, {qkv}, {grad})[0];
  const at::Tensor apart =
      packed_attention(qkv.narrow(1, 0, 6), qkv.narrow(1, 6, 2), qkv.narrow(1, 8, 2), segments, 0.125);
  const at::Tensor apart_grad = torch::autograd::grad({apart}, {qkv}, {grad})[0];
  EXPECT_TRUE(at::equal(fused, apart));
  EXPECT_TRUE(at::equal(fused_grad, apart_grad));
}

TEST(PackedAttention, RowsOfNoSegmentGiveZerosAndGetNoGradient) {
  const at::Tensor qkv = randn({kMixedRows, 10, 64}, 5).set_requires_grad(true);
  const at::Tensor out = packed_attention_qkv(qkv, 6, 2, mixed_segments(), 0.125);
  const at::Tensor grad = torch::autograd::grad({out}, {qkv}, {at::ones_like(out)})[0];
  EXPECT_EQ(out.slice(0, 299).abs().max().item<float>(), 0);
  EXPECT_EQ(grad.slice(0, 299).abs().max().item<float>(), 0);
  EXPECT_GT(grad.slice(0, 0, 299).abs().amax({1, 2}).min().item<float>(), 0);
}

TEST(PackedAttention, PrefixSharingEqualsRepeatingThePrompt) {
  const at::Tensor shared = randn({60, 5, 16}, 7);
  // rows 0..19 prompt, 20..39 and 40..59 completions; or the prompt written out twice
  const at::Tensor a = packed_attention_qkv(shared, 3, 1, {{0, 20, 0, 0}, {20, 40, 0, 20}, {40, 60, 0, 20}}, 0.25);
  const at::Tensor repeated = at::cat({shared.slice(0, 0, 40), shared.slice(0, 0, 20), shared.slice(0, 40, 60)});
  const at::Tensor b = packed_attention_qkv(repeated, 3, 1, {{0, 40, 0, 0}, {40, 80, 0, 0}}, 0.25);
  EXPECT_TRUE(at::equal(a.slice(0, 0, 40), b.slice(0, 0, 40)));
  EXPECT_TRUE(at::equal(a.slice(0, 40, 60), b.slice(0, 60, 80)));
}

TEST(PackedAttention, ThreadsDoNotChangeABit) {
  const int before = at::get_num_threads();
  const std::vector<std::pair<int64_t, Segments>> batches = {{kMixedRows, mixed_segments()}, {200, {{0, 200, 0, 0}}}};
  for (const auto& [num_rows, segments] : batches) {
    const at::Tensor q = randn({num_rows, 4, 32}, 1), k = randn({num_rows, 1, 32}, 2), v = randn({num_rows, 1, 32}, 3),
                     grad = randn(q.sizes(), 4);
    const auto run = [&](int threads) {
      at::set_num_threads(threads);
      return differentiate(q, k, v, grad, [&](const auto& a, const auto& b, const auto& c) {
        return packed_attention(a, b, c, segments, 0.2);
      });
    };
    const Result one = run(1);
    for (const int threads :
         {2, 5}) {  // one KV head: with more threads the backward cuts the work by tiles and queries
      const Result many = run(threads);
      EXPECT_TRUE(at::equal(one.out, many.out) && at::equal(one.dq, many.dq) && at::equal(one.dk, many.dk) &&
                  at::equal(one.dv, many.dv))
          << threads;
    }
  }
  at::set_num_threads(before);
}

TEST(PackedAttention, HugeScoresStayFinite) {
  const at::Tensor q = randn({130, 2, 16}, 1) * 300, k = randn({130, 1, 16}, 2) * 300, v = randn({130, 1, 16}, 3);
  const Segments segments = {{0, 130, 0, 0}};
  const at::Tensor ours = packed_attention(q, k, v, segments, 1.0);
  const at::Tensor exact =
      reference::packed_attention(q.to(at::kDouble), k.to(at::kDouble), v.to(at::kDouble), segments, 1.0);
  EXPECT_TRUE(at::isfinite(ours).all().item<bool>());
  EXPECT_LT((ours - exact).abs().median().item<double>(), 1e-6);
}

TEST(PackedAttention, ANanInAKeyReachesTheRowsThatSeeItAndNoOther) {
  const at::Tensor q = randn({40, 2, 16}, 1), k = randn({40, 1, 16}, 2), v = randn({40, 1, 16}, 3);
  k[20][0][5] = std::nan("");
  const at::Tensor bad = packed_attention(q, k, v, {{0, 40, 0, 0}}, 0.25).isnan().any(-1).any(-1);
  EXPECT_FALSE(bad.slice(0, 0, 20).any().item<bool>());
  EXPECT_TRUE(bad.slice(0, 20).all().item<bool>());
}

TEST(PackedAttention, DoublesTakeTheReference) {
  const at::Tensor q = randn({30, 2, 16}, 1, at::kDouble), k = randn({30, 1, 16}, 2, at::kDouble);
  const Segments segments = {{0, 30, 0, 0}};
  EXPECT_TRUE(
      at::equal(packed_attention(q, k, k, segments, 0.25), reference::packed_attention(q, k, k, segments, 0.25)));
}

TEST(PackedAttention, ASegmentOutsideTheBatchIsRefusedWithItsNumbers) {
  const at::Tensor x = randn({4, 1, 16}, 1);
  try {
    packed_attention(x, x, x, {{0, 5, 0, 0}}, 1.0);
    FAIL();
  } catch (const InvariantError& error) {
    EXPECT_NE(std::string(error.what()).find("segment [0, 5)"), std::string::npos) << error.what();
  }
}

TEST(PagedAttention, EqualsItsReferenceForChunksDecodeAndSharedBlocks) {
  for (const at::ScalarType cache_dtype : {at::kFloat, at::kBFloat16}) {
    for (const int64_t block_size : {16, 32, 64}) {
      KvCache cache = make_kv_cache(80, 3, block_size, 64, at::TensorOptions().dtype(cache_dtype));
      cache.k.copy_(randn(cache.k.sizes(), 1));
      cache.v.copy_(randn(cache.v.sizes(), 2));
      std::vector<std::vector<int32_t>> tables;
      const auto add_table = [&](int64_t num_shared, int64_t context) {
        std::vector<int32_t> table;
        for (int64_t b = 0; b * block_size < context; ++b)
          table.push_back(static_cast<int32_t>(b < num_shared ? b : (b * 31 + 7 * tables.size() + 11) % 80));
        tables.push_back(table);
      };
      // A group of 20 with a common start (more than one task's rows), contexts of every residue, and a prefill.
      std::vector<int64_t> contexts;
      for (int i = 0; i < 20; ++i) contexts.push_back(130 + 7 * i);
      contexts.insert(contexts.end(), {1, 15, 64, 65, 300});
      std::vector<PagedSequence> sequences;
      int64_t row = 0;
      for (size_t i = 0; i < contexts.size(); ++i) add_table(i < 20 ? 128 / block_size : 0, contexts[i]);
      for (size_t i = 0; i < contexts.size(); ++i) {
        const int64_t num_new = contexts[i] == 300 ? 90 : contexts[i] == 15 ? 15 : 1 + (i % 5 == 0 && i < 20);
        sequences.push_back({tables[i].data(), contexts[i], num_new, row});
        row += num_new;
      }
      const at::Tensor q = randn({row, 9, 64}, 3);
      at::Tensor ours = at::zeros_like(q), expected = at::zeros_like(q);
      paged_attention(q, cache, sequences, 0.125, ours);
      reference::paged_attention(q, cache, sequences, 0.125, expected);
      EXPECT_LT(largest_error(ours, expected), 5e-6);

      // Each alone: the same bits as in company.
      at::Tensor alone = at::zeros_like(q);
      for (const PagedSequence& sequence : sequences) paged_attention(q, cache, {sequence}, 0.125, alone);
      EXPECT_TRUE(at::equal(ours, alone));
    }
  }
}

TEST(PagedAttention, StoreKvWritesTheSlotsThatItsReferenceWrites) {
  for (const at::ScalarType from : {at::kFloat, at::kBFloat16})
    for (const at::ScalarType to : {at::kFloat, at::kBFloat16}) {
      KvCache ours = make_kv_cache(5, 2, 32, 24, at::TensorOptions().dtype(to));
      KvCache expected = make_kv_cache(5, 2, 32, 24, at::TensorOptions().dtype(to));
      for (KvCache* cache : {&ours, &expected}) {
        cache->k.zero_();
        cache->v.zero_();
      }
      const at::Tensor kv = randn({70, 4, 24}, 1, from);
      const at::Tensor slots = at::randperm(160, at::detail::createCPUGenerator(3)).narrow(0, 0, 70);
      store_kv(kv.narrow(1, 0, 2), kv.narrow(1, 2, 2), slots, ours);
      reference::store_kv(kv.narrow(1, 0, 2), kv.narrow(1, 2, 2), slots, expected);
      EXPECT_TRUE(at::equal(ours.k, expected.k) && at::equal(ours.v, expected.v));
      const int64_t slot = slots[69].item<int64_t>();
      EXPECT_EQ(ours.k[slot / 32][1][slot % 32 / 16][23][slot % 16].item<float>(), kv[69][1][23].to(to).item<float>());
      EXPECT_EQ(ours.v[slot / 32][1][slot % 32 / 16][slot % 16][23].item<float>(), kv[69][3][23].to(to).item<float>());
    }
}

TEST(PagedAttention, ABlockSizeThatIsNoMultipleOf16IsRefusedWithTheKeyAndTheFix) {
  try {
    make_kv_cache(4, 1, 24, 64, at::TensorOptions());
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_NE(std::string(error.what()).find("[rollout] block_size = 24"), std::string::npos) << error.what();
    EXPECT_NE(std::string(error.what()).find("Set 16"), std::string::npos) << error.what();
  }
}

std::vector<int64_t> numbers_of(const at::Tensor& x) {
  const at::Tensor wide = x.to(at::kLong).contiguous();
  return {wide.const_data_ptr<int64_t>(), wide.const_data_ptr<int64_t>() + wide.numel()};
}

// What the flash kernels are told; they themselves run on a GPU alone (tests/gpu).
TEST(RaggedLayout, LaysEachSegmentsPrefixBeforeItsOwnKeys) {
  const device::RaggedLayout plain = device::layout_of(Segments{{0, 3, 0, 0}, {3, 5, 0, 0}}, 5, at::kCPU);
  EXPECT_FALSE(plain.query_rows.defined());
  EXPECT_FALSE(plain.key_rows.defined());
  EXPECT_EQ(numbers_of(plain.key_ends), (std::vector<int64_t>{0, 3, 5}));

  const Segments segments = {{1, 3, 0, 0}, {3, 5, 1, 3}, {5, 5, 0, 0}, {5, 6, 1, 3}};  // row 0 is padding
  const device::RaggedLayout layout = device::layout_of(segments, 6, at::kCPU);
  EXPECT_EQ(numbers_of(layout.query_rows), (std::vector<int64_t>{1, 2, 3, 4, 5}));
  EXPECT_EQ(numbers_of(layout.key_rows), (std::vector<int64_t>{1, 2, 1, 2, 3, 4, 1, 2, 5}));
  EXPECT_EQ(numbers_of(layout.query_ends), (std::vector<int64_t>{0, 2, 4, 5}));
  EXPECT_EQ(numbers_of(layout.key_ends), (std::vector<int64_t>{0, 2, 6, 9}));
  EXPECT_EQ(layout.max_queries, 2);
  EXPECT_EQ(layout.max_keys, 4);
}

TEST(RaggedLayout, TakesASequencesKeysFromItsBlocks) {
  const std::vector<int32_t> first = {2, 0}, second = {1};
  const std::vector<PagedSequence> sequences = {{first.data(), 18, 1, 0}, {second.data(), 2, 2, 1}};
  const device::RaggedLayout layout = device::layout_of(sequences, 3, 16, at::kCPU);
  EXPECT_FALSE(layout.query_rows.defined());
  std::vector<int64_t> keys;
  for (int64_t slot = 32; slot < 48; ++slot) keys.push_back(slot);
  keys.insert(keys.end(), {0, 1, 16, 17});
  EXPECT_EQ(numbers_of(layout.key_rows), keys);
  EXPECT_EQ(numbers_of(layout.query_ends), (std::vector<int64_t>{0, 1, 3}));
  EXPECT_EQ(numbers_of(layout.key_ends), (std::vector<int64_t>{0, 18, 20}));
}

}  // namespace
}  // namespace temper
