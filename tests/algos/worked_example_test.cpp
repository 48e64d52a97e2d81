// The worked example of docs/adding_an_algorithm.md: what stands between "page:" and "end of page" is what the page
// shows (tests/support/check_docs.py compares). Neither the loss nor the estimator is part of the product.

// page: loss
// SPO: the surrogate with a parabola in place of the clip, l = -(A rho - |A| (rho - 1)^2 / (2 eps)). It is steepest at
// rho = 1 and turns at rho = 1 + eps sign(A), from where it pulls back. Xie et al. 2024,
// https://arxiv.org/abs/2401.16025; eps is clip_ratio_high.
#include <ATen/ATen.h>

#include "algos/policy_loss.h"

namespace temper {

TokenLoss spo_loss(const TokenLossInput& in) {
  const double eps = in.settings.clip_ratio_high;
  const at::Tensor ratio = clamped_log_ratio(in.policy, in.old).exp();
  const at::Tensor gain = in.advantages * ratio - in.advantages.abs() * (ratio - 1).square() / (2 * eps);
  const at::Tensor below = (ratio < 1 - eps) & (in.advantages < 0), above = (ratio > 1 + eps) & (in.advantages > 0);
  return {-gain, below, above, {}};
}

}  // namespace temper
// end of page

// page: estimator
// A group's scores less their median, which one outlier does not move. A group of one keeps its score.
#include <algorithm>

#include "algos/advantage.h"

namespace temper {

EstimatorOutput median_advantages(const EstimatorInput& in) {
  const std::vector<double>& scores = in.scores.score;
  std::vector<double> a(scores.size(), 0);
  for (const GroupRange& group : in.scores.groups) {
    if (!in.scores.stays[group.begin]) continue;  // filtered out
    std::vector<double> sorted(scores.begin() + group.begin, scores.begin() + group.end);
    std::sort(sorted.begin(), sorted.end());
    const size_t n = sorted.size();
    const double median = n == 1 ? 0 : (sorted[(n - 1) / 2] + sorted[n / 2]) / 2;
    for (int64_t i = group.begin; i < group.end; ++i) a[i] = scores[i] - median;
  }
  return {spread_over_tokens(in.scores, a), {}};
}

}  // namespace temper
// end of page

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "algos/algorithm.h"
#include "config/load.h"

namespace temper {
namespace {

using ::testing::ElementsAre;

// page: test
// Two completions of two tokens, scores 1 and -1, ratios 1.1 and 0.5 in each.
LossBatch two_completions() {
  LossBatch batch;
  batch.lengths = {2, 2};
  batch.group_sizes = {2};
  batch.mask = at::ones({4}, at::kBool);
  batch.reward = at::tensor({1.0, -1.0}, at::kDouble);
  batch.old_logprobs = at::tensor({-2.0, -1.0, -2.0, -1.0}, at::kDouble);
  return batch;
}

at::Tensor with_ratios() {
  return at::tensor({-2 + std::log(1.1), -1 + std::log(0.5), -2 + std::log(1.1), -1 + std::log(0.5)}, at::kDouble);
}

std::unique_ptr<Algorithm> example() {
  static const PolicyLossRow kLoss{PolicyLoss::kClip, spo_loss, /*weighted=*/true, /*selects=*/false};
  static const EstimatorRow kEstimator{AdvEstimator::kRloo, median_advantages};
  return make_algorithm(parse_algo({"loss_agg_mode=token-mean", "clip_ratio_high=0.2"}), {}, kEstimator, kLoss);
}

TEST(WorkedExample, LossByHand) {
  // A = 1:  -(1.1 - 0.01 / 0.4) = -1.075, -(0.5 - 0.25 / 0.4) = 0.125
  // A = -1:  1.1 + 0.01 / 0.4 = 1.125,     0.5 + 0.25 / 0.4 = 1.125; the sum is 1.3, of four tokens
  LossBatch batch = two_completions();
  const auto algorithm = example();
  algorithm->advantages(batch);
  const LossResult result = algorithm->loss({with_ratios(), {}, {}, {}}, batch, global_counts(batch));
  EXPECT_NEAR(result.loss.item<double>(), 1.3 / 4, 1e-14);
  EXPECT_DOUBLE_EQ(result.metrics.result("clip_ratio/low_mean"), 0.25);  // the last token: ratio 0.5, A = -1
}

TEST(WorkedExample, GradientEqualsTheDifferences) {
  LossBatch batch = two_completions();
  const auto algorithm = example();
  algorithm->advantages(batch);
  const auto loss = [&](const at::Tensor& policy) {
    return algorithm->loss({policy, {}, {}, {}}, batch, global_counts(batch)).loss;
  };
  const at::Tensor policy = with_ratios().set_requires_grad(true);
  loss(policy).backward();
  for (int64_t t = 0; t < 4; ++t) {
    const double h = 1e-6;
    at::Tensor up = with_ratios(), down = with_ratios();
    up[t] += h;
    down[t] -= h;
    const double difference = (loss(up).item<double>() - loss(down).item<double>()) / (2 * h);
    EXPECT_NEAR(policy.grad()[t].item<double>(), difference, 1e-8) << t;
  }
}

TEST(WorkedExample, MedianByHand) {
  LossBatch batch = two_completions();
  batch.lengths = {1, 2, 1};
  batch.group_sizes = {3};
  batch.reward = at::tensor({7.0, 1.0, 0.0}, at::kDouble);
  example()->advantages(batch);
  EXPECT_THAT(to_doubles(batch.advantages), ElementsAre(6, 0, 0, -1));
}
// end of page

TEST(WorkedExample, EveryWordOfTheConfigurationHasItsRow) {
  for (size_t i = 0; i < choice_names<PolicyLoss>().size(); ++i) {
    const auto id = static_cast<PolicyLoss>(i);
    if (!is_preference_loss(id)) {
      EXPECT_EQ(policy_loss_row(id).id, id);
    }
  }
  for (size_t i = 0; i < choice_names<AdvEstimator>().size(); ++i)
    EXPECT_EQ(estimator_row(static_cast<AdvEstimator>(i)).id, static_cast<AdvEstimator>(i));
}

}  // namespace
}  // namespace temper
