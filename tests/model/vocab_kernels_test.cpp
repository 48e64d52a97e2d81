#include "model/vocab_kernels.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/autograd.h>

#include <cmath>
#include <limits>

#include "core/error.h"
#include "model/cpu_dispatch.h"
#include "tests/model/tensors.h"

namespace temper {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();

at::Tensor scaled_randn(at::IntArrayRef shape, int64_t seed, double scale = 1) { return randn(shape, seed) * scale; }
at::Tensor random_targets(int64_t count, int64_t vocab) {
  return at::randint(0, vocab, {count}, at::detail::createCPUGenerator(5), at::kLong);
}

class VocabAtEveryLevel : public testing::TestWithParam<CpuLevel> {
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
INSTANTIATE_TEST_SUITE_P(Levels, VocabAtEveryLevel,
                         testing::Values(CpuLevel::kBaseline, CpuLevel::kAvx2, CpuLevel::kAvx512));

TEST_P(VocabAtEveryLevel, StatisticsEqualLogSoftmaxInF64) {
  for (const int64_t vocab : {1, 3, 16, 63, 64, 1000, 1025, 49152})
    for (const double temperature : {1.0, 0.7, 2.0}) {
      const at::Tensor logits = scaled_randn({6, vocab}, vocab, 4), targets = random_targets(6, vocab);
      const VocabStatistics ours = vocab_statistics(logits, 1 / temperature, targets, true);
      const at::Tensor exact = at::log_softmax(logits.to(at::kDouble) / temperature, -1);
      const at::Tensor logprob = exact.gather(1, targets.unsqueeze(1)).squeeze(1);
      EXPECT_LT(largest_error(ours.target_logits - ours.logsumexp, logprob), 4e-6) << vocab;
      EXPECT_LT(largest_error(ours.entropy, -(exact.exp() * exact).sum(-1)), 4e-6) << vocab;
      EXPECT_TRUE(at::equal(row_logsumexp(logits, 1 / temperature), ours.logsumexp));
      EXPECT_TRUE(at::equal(row_entropy(logits, 1 / temperature), ours.entropy));
    }
}

TEST_P(VocabAtEveryLevel, TheExponentialIsGoodToAFewUnitsInTheLastPlace) {
  // With logsumexp 0 and gradient -1 the second of two columns becomes e^x.
  std::vector<float> values;
  for (float x = -87; x <= 0; x += 0.0371f) values.push_back(x);
  const int64_t count = static_cast<int64_t>(values.size());
  at::Tensor logits = at::tensor(values).unsqueeze(1).repeat({1, 2});
  logits_backward_(logits, 1.0, at::zeros({count}, at::kLong), at::zeros({count}), at::full({count}, -1.0));
  const at::Tensor exact = at::tensor(values).to(at::kDouble).exp();
  EXPECT_LT(((logits.select(1, 1).to(at::kDouble) - exact) / exact).abs().max().item<double>(), 2.5e-7);
}

TEST_P(VocabAtEveryLevel, BackwardEqualsAutogradOfLogSoftmax) {
  for (const int64_t vocab : {1, 7, 64, 1000, 5003}) {
    const double temperature = 0.8;
    const at::Tensor logits = scaled_randn({5, vocab}, vocab, 3), targets = random_targets(5, vocab);
    const at::Tensor grad = scaled_randn({5}, 1), entropy_grad = scaled_randn({5}, 2);
    const at::Tensor leaf = logits.to(at::kDouble).set_requires_grad(true);
    const at::Tensor log_p = at::log_softmax(leaf / temperature, -1);
    const at::Tensor logprob = log_p.gather(1, targets.unsqueeze(1)).squeeze(1);
    const at::Tensor exact_plain = torch::autograd::grad({logprob}, {leaf}, {grad.to(at::kDouble)}, true)[0];
    const at::Tensor exact = torch::autograd::grad({logprob, -(log_p.exp() * log_p).sum(-1)}, {leaf},
                                                   {grad.to(at::kDouble), entropy_grad.to(at::kDouble)})[0];
    const VocabStatistics statistics = vocab_statistics(logits, 1 / temperature, targets, true);
    at::Tensor ours = logits.clone();
    logits_backward_(ours, 1 / temperature, targets, statistics.logsumexp, grad);
    EXPECT_LT(largest_error(ours, exact_plain), 3e-6);
    ours = logits.clone();
    logits_backward_(ours, 1 / temperature, targets, statistics.logsumexp, grad, statistics.entropy, entropy_grad);
    EXPECT_LT(largest_error(ours, exact), 5e-6);
  }
}

TEST_P(VocabAtEveryLevel, DrawsFollowTheInverseOfTheCumulativeDistribution) {
  for (const int64_t vocab : {1, 5, 17, 1024, 3000}) {
    const at::Tensor logits = scaled_randn({1, vocab}, vocab, 3);
    const at::Tensor cumulative = at::softmax(logits[0].to(at::kDouble) / 1.3, 0).cumsum(0);
    for (int i = 0; i < 200; ++i) {
      const double u = (i + 0.5) / 200;
      const TokenDraw draw = draw_token(logits.const_data_ptr<float>(), vocab, 1.3, {}, u);
      const double after = cumulative[draw.token].item<double>();
      const double before = draw.token == 0 ? 0 : cumulative[draw.token - 1].item<double>();
      EXPECT_LE(before, u + 1e-6);
      EXPECT_GT(after, u - 1e-6);
      EXPECT_EQ(draw.logit, logits[0][draw.token].item<float>());
    }
  }
}

TEST(VocabKernels, BlocksOfTheVocabularyGiveTheGradientOfTheWhole) {
  const at::Tensor logits = scaled_randn({6, 100}, 1, 2), targets = random_targets(6, 100), grad = scaled_randn({6}, 2);
  const VocabStatistics whole = vocab_statistics(logits, 0.9, targets, true);
  at::Tensor expected = logits.clone();
  logits_backward_(expected, 0.9, targets, whole.logsumexp, grad, whole.entropy, grad);
  for (const at::ScalarType dtype : {at::kFloat, at::kDouble})
    for (const auto& [begin, end] : std::vector<std::pair<int64_t, int64_t>>{{0, 37}, {37, 64}, {64, 100}}) {
      at::Tensor block = logits.slice(1, begin, end).contiguous().to(dtype);
      logits_backward_(block, 0.9, targets - begin, whole.logsumexp, grad, whole.entropy, grad);
      EXPECT_LT(largest_error(block, expected.slice(1, begin, end)), 1e-6);
    }
}

TEST(VocabKernels, TargetsOutsideTheBlockCountAsZero) {
  const at::Tensor logits = scaled_randn({3, 10}, 1);
  const VocabStatistics statistics = vocab_statistics(logits, 1.0, at::arange(3, at::kLong) * 10 - 10, false);
  EXPECT_EQ(statistics.target_logits[0].item<float>(), 0);
  EXPECT_EQ(statistics.target_logits[1].item<float>(), logits[1][0].item<float>());
  EXPECT_EQ(statistics.target_logits[2].item<float>(), 0);
}

TEST(VocabKernels, MaskedLogitsHaveNoProbabilityAndHarmNothing) {
  at::Tensor logits = at::tensor({1.0f, -kInfinity, 1.0f, -kInfinity}).unsqueeze(0);
  const VocabStatistics statistics = vocab_statistics(logits, 1.0, at::zeros({1}, at::kLong), true);
  EXPECT_NEAR(statistics.logsumexp[0].item<float>(), 1 + std::log(2.0), 1e-6);
  EXPECT_NEAR(statistics.entropy[0].item<float>(), std::log(2.0), 1e-6);
  logits_backward_(logits, 1.0, at::zeros({1}, at::kLong), statistics.logsumexp, at::ones({1}), statistics.entropy,
                   at::ones({1}));
  EXPECT_LT(largest_error(logits[0], at::tensor({0.5f, 0.0f, -0.5f, 0.0f})), 1e-6);
}

TEST(VocabKernels, NotFiniteLogitsShowInTheSums) {
  for (const float bad : {std::nanf(""), kInfinity})
    for (const int64_t place : {0, 20, 99}) {
      at::Tensor logits = scaled_randn({1, 100}, 1);
      logits[0][place] = bad;
      EXPECT_FALSE(std::isfinite(row_logsumexp(logits, 1.0)[0].item<float>()));
      const TokenDraw draw = draw_token(logits.const_data_ptr<float>(), 100, 1.0, {.top_k = 3, .top_p = 0.5}, 0.4);
      EXPECT_FALSE(std::isfinite(draw.logsumexp));
      EXPECT_TRUE(draw.token >= 0 && draw.token < 100);
    }
}

TEST(VocabKernels, ThreadsDoNotChangeABit) {
  const int before = at::get_num_threads();
  const at::Tensor logits = scaled_randn({37, 3001}, 1, 3), targets = random_targets(37, 3001),
                   grad = scaled_randn({37}, 2);
  const auto run = [&](int threads) {
    at::set_num_threads(threads);
    const VocabStatistics statistics = vocab_statistics(logits, 0.9, targets, true);
    at::Tensor copy = logits.clone();
    logits_backward_(copy, 0.9, targets, statistics.logsumexp, grad);
    return std::vector<at::Tensor>{statistics.logsumexp, statistics.target_logits, statistics.entropy, copy};
  };
  const auto one = run(1), two = run(2);
  at::set_num_threads(before);
  for (size_t i = 0; i < one.size(); ++i) EXPECT_TRUE(at::equal(one[i], two[i])) << i;
}

TEST(VocabKernels, DoublesTakeThePlainPath) {
  const at::Tensor logits = scaled_randn({4, 50}, 1).to(at::kDouble), targets = random_targets(4, 50);
  const VocabStatistics wide = vocab_statistics(logits, 0.5, targets, true);
  const VocabStatistics ours = vocab_statistics(logits.to(at::kFloat), 0.5, targets, true);
  EXPECT_EQ(wide.logsumexp.scalar_type(), at::kDouble);
  EXPECT_LT(largest_error(wide.logsumexp, ours.logsumexp), 1e-6);
  EXPECT_LT(largest_error(wide.entropy, ours.entropy), 1e-6);
  at::Tensor wide_grad = logits.clone(), grad = logits.to(at::kFloat);
  logits_backward_(wide_grad, 0.5, targets, wide.logsumexp, at::ones({4}, at::kDouble), wide.entropy,
                   at::ones({4}, at::kDouble));
  logits_backward_(grad, 0.5, targets, ours.logsumexp, at::ones({4}), ours.entropy, at::ones({4}));
  EXPECT_LT(largest_error(wide_grad, grad), 1e-6);
}

TEST(TokenFilter, TopKKeepsTheKLargestAndTiesWithTheLast) {
  const at::Tensor logits = scaled_randn({1, 5000}, 3), sorted = std::get<0>(logits[0].sort(0, /*descending=*/true));
  for (const int64_t k : {1, 2, 50, 78, 79, 500, 4999})
    EXPECT_EQ(filter_threshold(logits.const_data_ptr<float>(), 5000, 1.0f, {.top_k = k}), sorted[k - 1].item<float>())
        << k;
  EXPECT_EQ(filter_threshold(logits.const_data_ptr<float>(), 5000, 1.0f, {.top_k = 5000}), -kInfinity);
  const std::vector<float> ties = {1, 3, 3, 3, 2};
  EXPECT_EQ(filter_threshold(ties.data(), 5, 1.0f, {.top_k = 2}), 3);
}

TEST(TokenFilter, TopPKeepsTheSmallestSetThatReachesItForPeakedAndFlatRows) {
  for (const double scale : {0.01, 1.0, 6.0})
    for (const double top_p : {0.001, 0.3, 0.9, 0.99}) {
      const at::Tensor logits = scaled_randn({1, 3000}, 4, scale);
      const auto [sorted, index] = logits[0].to(at::kDouble).sort(0, /*descending=*/true);
      const at::Tensor cumulative = at::softmax(sorted / 0.8, 0).cumsum(0);
      const int64_t expected = cumulative.lt(top_p).sum().item<int64_t>();  // index of the token that reaches top_p
      const float threshold = filter_threshold(logits.const_data_ptr<float>(), 3000, 1 / 0.8f, {.top_p = top_p});
      const int64_t kept = logits[0].ge(threshold).sum().item<int64_t>();
      EXPECT_NEAR(static_cast<double>(kept), static_cast<double>(expected + 1), scale == 0.01 ? 2 : 0)
          << scale << " " << top_p;
    }
}

TEST(TokenFilter, FiltersWorkOnWhatTheOneBeforeLeft) {
  // Probabilities 0.4, 0.3, 0.2, 0.1. Of the first three (renormalised 4/9, 3/9, 2/9) two reach 0.7.
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  const auto kept = [&](const TokenFilter& filter) {
    const float threshold = filter_threshold(logits.data(), 4, 1.0f, filter);
    std::string result;
    for (int i = 0; i < 4; ++i) result += logits[i] >= threshold ? '1' : '0';
    return result;
  };
  EXPECT_EQ(kept({.top_p = 0.71}), "0111");
  EXPECT_EQ(kept({.top_k = 3, .top_p = 0.71}), "0101");
  EXPECT_EQ(kept({.min_p = 0.6}), "0101");
  EXPECT_EQ(kept({.top_k = 3, .top_p = 0.71, .min_p = 0.9}), "0100");
  EXPECT_EQ(kept({}), "1111");
}

TEST(TokenDraw, StaysInsideTheFilterAndRenormalises) {
  const std::vector<float> logits = {std::log(0.1f), std::log(0.4f), std::log(0.2f), std::log(0.3f)};
  const TokenFilter filter{.top_k = 2};  // tokens 1 and 3 with 4/7 and 3/7
  EXPECT_EQ(draw_token(logits.data(), 4, 1.0, filter, 0.0).token, 1);
  EXPECT_EQ(draw_token(logits.data(), 4, 1.0, filter, 0.57).token, 1);
  EXPECT_EQ(draw_token(logits.data(), 4, 1.0, filter, 0.572).token, 3);
  EXPECT_EQ(draw_token(logits.data(), 4, 1.0, filter, std::nextafter(1.0, 0.0)).token, 3);
  EXPECT_NEAR(draw_token(logits.data(), 4, 1.0, filter, 0.5).logsumexp, 0, 1e-6);  // of all tokens
}

TEST(TokenDraw, TheLastDrawIsATokenWithProbabilityEvenBeforeMaskedBlocks) {
  std::vector<float> logits(5000, -kInfinity);
  logits[700] = 1;
  logits[1500] = 2;
  EXPECT_EQ(draw_token(logits.data(), 5000, 1.0, {}, std::nextafter(1.0, 0.0)).token, 1500);
  EXPECT_EQ(draw_token(logits.data(), 5000, 1.0, {}, 0.0).token, 700);
}

TEST(TokenDraw, TemperatureZeroTakesTheFirstOfTheLikeliest) {
  std::vector<float> logits(2000, 0.0f);
  logits[77] = logits[1300] = 3;
  const TokenDraw draw = draw_token(logits.data(), 2000, 0, {}, 0.9);
  EXPECT_EQ(draw.token, 77);
  EXPECT_EQ(row_argmax(logits.data(), 2000), 77);
  EXPECT_NEAR(draw.logit - draw.logsumexp, 3 - std::log(1998 + 2 * std::exp(3.0)), 1e-5);
  EXPECT_EQ(draw.scaled_logsumexp, draw.logsumexp);
}

TEST(TokenDraw, SumsAreBeforeTheFilterAndAtEachTemperature) {
  const at::Tensor logits = scaled_randn({1, 2500}, 8, 2);
  const TokenDraw draw = draw_token(logits.const_data_ptr<float>(), 2500, 0.6, {.top_k = 5, .top_p = 0.8}, 0.3);
  EXPECT_NEAR(draw.logsumexp, logits[0].to(at::kDouble).logsumexp(0).item<double>(), 2e-6);
  EXPECT_NEAR(draw.scaled_logsumexp, (logits[0].to(at::kDouble) / 0.6).logsumexp(0).item<double>(), 2e-6);
}

}  // namespace
}  // namespace temper
