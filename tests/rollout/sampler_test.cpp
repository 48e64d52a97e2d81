#include "rollout/sampler.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <numeric>

#include "core/error.h"

namespace temper {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

constexpr int64_t kVocab = 40;

at::Tensor fixed_logits() {
  at::Tensor logits = at::empty({1, kVocab});
  for (int64_t i = 0; i < kVocab; ++i) logits[0][i] = 2.5 * std::sin(1.7 * static_cast<double>(i * i + 3)) - 0.02 * i;
  return logits;
}

// Softmax at the temperature, then top-k, top-p and min-p one after the other, each on what the one before left,
// renormalised: the order and meaning of transformers' logits processors.
std::vector<double> expected_distribution(const SamplingParams& sampling) {
  const at::Tensor logits = fixed_logits();
  std::vector<double> p(kVocab);
  for (int64_t i = 0; i < kVocab; ++i)
    p[static_cast<size_t>(i)] = std::exp(logits[0][i].item<double>() / sampling.temperature);
  std::vector<size_t> order(kVocab);
  std::iota(order.begin(), order.end(), 0);
  std::stable_sort(order.begin(), order.end(), [&](size_t a, size_t b) { return p[a] > p[b]; });
  const auto normalise = [&] {
    const double total = std::accumulate(p.begin(), p.end(), 0.0);
    for (double& each : p) each /= total;
  };
  normalise();
  if (sampling.top_k > 0)
    for (size_t i = static_cast<size_t>(sampling.top_k); i < order.size(); ++i) p[order[i]] = 0;
  normalise();
  double before = 0;
  for (const size_t id : order) {
    const double mine = p[id];
    if (before >= sampling.top_p) p[id] = 0;
    before += mine;
  }
  normalise();
  const double largest = p[order[0]];
  for (double& each : p)
    if (each < sampling.min_p * largest) each = 0;
  normalise();
  return p;
}

// Pearson's statistic of 40,000 draws against the exact distribution, compared with its mean plus five deviations.
void expect_follows(const SamplingParams& sampling) {
  constexpr int kDraws = 40000;
  const std::vector<double> expected = expected_distribution(sampling);
  std::vector<Draw> draws;
  for (int32_t i = 0; i < kDraws; ++i)
    draws.push_back({.row = 0, .sampling = &sampling, .key = {.seed = 3, .serial = 11, .position = i}});
  std::vector<double> counts(kVocab, 0);
  for (const DrawnToken& token : draw_tokens(fixed_logits(), draws)) ++counts[static_cast<size_t>(token.token_id)];
  double statistic = 0, freedom = -1;
  for (size_t i = 0; i < expected.size(); ++i) {
    if (expected[i] == 0) {
      EXPECT_EQ(counts[i], 0) << "token " << i << " is filtered out";
      continue;
    }
    const double mean = kDraws * expected[i];
    statistic += (counts[i] - mean) * (counts[i] - mean) / mean;
    ++freedom;
  }
  EXPECT_LT(statistic, freedom + 5 * std::sqrt(2 * freedom) + 1);
}

TEST(Sampler, DrawsFollowTheSoftmax) { expect_follows({}); }
TEST(Sampler, DrawsFollowTheTemperature) {
  expect_follows({.temperature = 0.5});
  expect_follows({.temperature = 2.0});
}
TEST(Sampler, TopKKeepsTheLikeliest) {
  expect_follows({.top_k = 5});
  expect_follows({.temperature = 0.8, .top_k = 17});
}
TEST(Sampler, TopPKeepsTheSmallestSetThatReachesIt) {
  expect_follows({.top_p = 0.9});
  expect_follows({.temperature = 1.5, .top_p = 0.35});
}
TEST(Sampler, MinPIsRelativeToTheLikeliest) {
  expect_follows({.min_p = 0.1});
  expect_follows({.temperature = 1.3, .min_p = 0.3});
}
TEST(Sampler, FiltersApplyInTheOrderOfTransformers) {
  expect_follows({.temperature = 1.2, .top_k = 12, .top_p = 0.8, .min_p = 0.2});
  expect_follows({.temperature = 0.9, .top_k = 3, .top_p = 0.6});
}

TEST(Sampler, GreedyTakesTheFirstOfTheLargest) {
  at::Tensor logits = at::zeros({2, 7});
  logits[0][3] = 2;
  logits[0][5] = 2;
  const SamplingParams greedy{.temperature = 0};
  const auto tokens =
      draw_tokens(logits, {{.row = 0, .sampling = &greedy, .key = {}}, {.row = 1, .sampling = &greedy, .key = {}}});
  EXPECT_EQ(tokens[0].token_id, 3);
  EXPECT_EQ(tokens[1].token_id, 0);
  EXPECT_NEAR(tokens[0].logprob, 2 - std::log(2 * std::exp(2.0) + 5), 1e-6);
  EXPECT_EQ(tokens[0].behavior_logprob, tokens[0].logprob);
}

TEST(Sampler, LogprobsAreUntruncatedAtTemperatureOneAndAtTheSamplingTemperature) {
  const SamplingParams sampling{.temperature = 0.6, .top_k = 3};
  const at::Tensor plain = at::log_softmax(fixed_logits().to(at::kDouble), -1);
  const at::Tensor scaled = at::log_softmax(fixed_logits().to(at::kDouble) / 0.6, -1);
  for (int32_t i = 0; i < 20; ++i) {
    const DrawnToken token =
        draw_tokens(fixed_logits(), {{.row = 0, .sampling = &sampling, .key = {.position = i}}})[0];
    EXPECT_NEAR(token.logprob, plain[0][token.token_id].item<double>(), 1e-6);
    EXPECT_NEAR(token.behavior_logprob, scaled[0][token.token_id].item<double>(), 1e-6);
  }
}

TEST(Sampler, LogitsThatAreNotFiniteAreANumericsError) {
  at::Tensor logits = fixed_logits();
  logits[0][4] = std::numeric_limits<float>::quiet_NaN();
  for (const double temperature : {0.0, 1.0}) {
    const SamplingParams sampling{.temperature = temperature};
    EXPECT_THROW(draw_tokens(logits, {{.row = 0, .sampling = &sampling, .key = {}}}), NumericsError);
  }
}

std::string refusal(const SamplingParams& sampling) {
  try {
    check_sampling(sampling, "line 3");
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(CheckSampling, NamesTheSettingItsValueAndTheFix) {
  EXPECT_EQ(refusal({}), "accepted");
  EXPECT_THAT(refusal({.temperature = -1}), AllOf(HasSubstr("line 3: temperature is -1"), HasSubstr("0 is greedy")));
  EXPECT_THAT(refusal({.temperature = std::nan("")}), HasSubstr("temperature is nan"));
  EXPECT_THAT(refusal({.temperature = 1e-30}), AllOf(HasSubstr("temperature is 1e-30"), HasSubstr("0 (greedy)")));
  EXPECT_THAT(refusal({.top_k = -2}), AllOf(HasSubstr("top_k is -2"), HasSubstr("0 (all tokens)")));
  EXPECT_THAT(refusal({.top_p = 1.5}), AllOf(HasSubstr("top_p is 1.5"), HasSubstr("up to 1")));
  EXPECT_THAT(refusal({.min_p = 1.5}), AllOf(HasSubstr("min_p is 1.5"), HasSubstr("from 0")));
  EXPECT_THAT(refusal({.max_new_tokens = 0}), AllOf(HasSubstr("max_new_tokens is 0"), HasSubstr("at least 1")));
  EXPECT_THAT(refusal({.stop = {"a", ""}}), HasSubstr("stop string is empty"));
}

}  // namespace
}  // namespace temper
