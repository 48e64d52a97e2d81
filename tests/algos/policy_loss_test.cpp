// Losses worked out by hand, and their limits.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "algos/algorithm.h"
#include "algos/cov_losses.h"
#include "algos/scores.h"
#include "config/load.h"
#include "core/error.h"

namespace temper {
namespace {

using ::testing::ElementsAre;

// Two completions of two tokens, advantages 1 and -1, and ratios 1.5, 0.5 in each.
struct Worked {
  LossBatch batch;
  at::Tensor policy;

  Worked() {
    batch.lengths = {2, 2};
    batch.group_sizes = {2};
    batch.mask = at::ones({4}, at::kBool);
    batch.reward = at::tensor({1.0, -1.0}, at::kDouble);
    batch.old_logprobs = at::tensor({-2.0, -1.0, -2.0, -1.0}, at::kDouble);
    policy = batch.old_logprobs + at::tensor({1.5, 0.5, 1.5, 0.5}, at::kDouble).log();
  }
  LossResult loss(std::vector<std::string> settings, const AlgoContext& context = {}) {
    settings.insert(settings.begin(), "scale_rewards=none");
    const auto algorithm = make_algorithm(parse_algo(settings), context);
    algorithm->advantages(batch);
    const GlobalCounts counts = global_counts(batch);
    if (algorithm->needs_prepare()) algorithm->prepare(batch, policy, nullptr);
    return algorithm->loss({policy, {}, {}, {}}, batch, counts);
  }
  double value(const std::vector<std::string>& settings, const AlgoContext& context = {}) {
    return loss(settings, context).loss.item<double>();
  }
};

TEST(PolicyLoss, ClipTakesTheWorseOfRatioAndBoundedRatio) {
  // A = 1: -1.2 (clipped), -0.5; A = -1: 1.5, 0.8 (clipped); mean 0.6 / 4
  Worked w;
  EXPECT_NEAR(w.value({}), 0.15, 1e-15);
  const MetricSums metrics = w.loss({}).metrics;
  EXPECT_DOUBLE_EQ(metrics.result("clip_ratio/high_mean"), 0.25);
  EXPECT_DOUBLE_EQ(metrics.result("clip_ratio/low_mean"), 0.25);
  EXPECT_DOUBLE_EQ(metrics.result("clip_ratio/region_mean"), 0.5);
  EXPECT_NEAR(metrics.result("ppo_kl"), -(std::log(1.5) + std::log(0.5)) / 2, 1e-15);
}

TEST(PolicyLoss, DualClipBoundsTheLossOfBadTokens) {
  // min(1.5, 1.1) = 1.1: (-1.2 - 0.5 + 1.1 + 0.8) / 4
  Worked w;
  EXPECT_NEAR(w.value({"clip_ratio_c=1.1"}), 0.05, 1e-15);
  EXPECT_DOUBLE_EQ(w.loss({"clip_ratio_c=1.1"}).metrics.result("clip_ratio/dual_mean"), 0.25);
}

TEST(PolicyLoss, GspoGivesEveryTokenTheGeometricMeanOfTheRatios) {
  const double ratio = std::sqrt(0.75);
  Worked w;
  EXPECT_NEAR(w.value({"policy_loss=gspo", "clip_ratio_low=0.1"}), (-ratio + 0.9) / 2, 1e-15);
}

TEST(PolicyLoss, CispoWeighsTheLogProbabilityByTheClippedRatio) {
  Worked w;
  const double p = -2 + std::log(1.5), q = -1 + std::log(0.5);
  EXPECT_NEAR(w.value({"policy_loss=cispo"}), ((-1.2 * p - 0.8 * q) + (1.2 * p + 0.8 * q)) / 4, 1e-15);
  w.batch.mask = at::tensor({1, 1, 0, 0}, at::kByte).to(at::kBool);
  EXPECT_NEAR(w.value({"policy_loss=cispo", "loss_agg_mode=token-sum"}), -1.2 * p - 0.8 * q, 1e-15);
  EXPECT_NEAR(w.value({"policy_loss=cispo", "cispo_bound=absolute", "clip_ratio_high=1.4", "loss_agg_mode=token-sum"}),
              -1.4 * p - 0.5 * q, 1e-15);
}

TEST(PolicyLoss, SapoIsASigmoidAroundTheRatioOne) {
  const auto sigmoid = [](double x) { return 1 / (1 + std::exp(-x)); };
  Worked w;
  const double expected = -(sigmoid(0.5) + sigmoid(-0.5)) * 4 + (sigmoid(1.05 * 0.5) + sigmoid(-1.05 * 0.5)) * 4 / 1.05;
  EXPECT_NEAR(w.value({"policy_loss=sapo"}), expected / 4, 1e-15);
}

TEST(PolicyLoss, GmpoClipsLogRatiosBeforeTheirGeometricMean) {
  Worked w;
  const double good = std::exp((0.2 + std::log(0.5)) / 2), bad = std::exp((std::log(1.5) - 0.2) / 2);
  EXPECT_NEAR(w.value({"policy_loss=gmpo"}), (-good + bad) / 2, 1e-15);
}

TEST(PolicyLoss, ReinforceAndSftAreLogLikelihoods) {
  Worked w;
  const double sum = -3 + std::log(0.75);
  w.batch.mask = at::tensor({1, 1, 0, 0}, at::kByte).to(at::kBool);
  EXPECT_NEAR(w.value({"policy_loss=reinforce", "loss_agg_mode=token-sum"}), -sum, 1e-15);
  EXPECT_NEAR(w.value({"preset=sft"}), -sum / 2, 1e-15);
}

TEST(PolicyLoss, KlCovPenalisesTheTokensOfLargestCovariance) {
  // A - mean A = 1, 1, -1, -1; p - mean p = +-(log 3 - 1) / 2 = +-0.049: the first and the last have the largest
  // covariance; |lr| there is log 1.5 and log 2.
  Worked w;
  EXPECT_NEAR(w.value({"policy_loss=kl_cov", "kl_cov_ratio=0.5", "kl_cov_coef=2"}), 2 * std::log(3) / 4, 1e-15);
  EXPECT_THAT(to_doubles(w.batch.selected), ElementsAre(1, 0, 0, 1));
}

TEST(PolicyLoss, ClipCovDrawsWithTheSeedAmongTheCandidates) {
  Worked w;
  w.value({"policy_loss=clip_cov", "clip_cov_lb=0.0", "clip_cov_ratio=0.25"});
  // The first is clipped (A > 0, ratio 1.5) and so is the last (A < 0, ratio 0.5): nothing is left to select.
  EXPECT_THAT(to_doubles(w.batch.selected), ElementsAre(0, 0, 0, 0));
  const AlgoSection wide = parse_algo(
      {"policy_loss=clip_cov", "clip_cov_lb=0.0", "clip_cov_ratio=0.25", "clip_ratio_low=1", "clip_ratio_high=1"});
  std::vector<double> drawn(4, 0);
  for (uint64_t seed = 0; seed < 40; ++seed) {
    SplitMix64 rng(seed);
    const std::vector<double> selected = to_doubles(select_by_covariance(w.batch, w.policy, wide, &rng));
    for (int t = 0; t < 4; ++t) drawn[t] += selected[t];
    SplitMix64 again(seed);
    EXPECT_EQ(selected, to_doubles(select_by_covariance(w.batch, w.policy, wide, &again)));
  }
  EXPECT_EQ(drawn[1] + drawn[2], 0);
  EXPECT_GT(drawn[0], 5);
  EXPECT_GT(drawn[3], 5);
}

TEST(Aggregation, HasFiveModes) {
  // sft of completions of 1 and 3 tokens, log-probabilities -1 and -2, -3, -4
  LossBatch batch;
  batch.lengths = {1, 3};
  batch.group_sizes = {1, 1};
  batch.mask = at::ones({4}, at::kBool);
  const at::Tensor policy = at::tensor({-1.0, -2.0, -3.0, -4.0}, at::kDouble);
  const auto loss = [&](const std::string& mode) {
    const auto algorithm = make_algorithm(parse_algo({"preset=sft", "loss_agg_mode=" + mode}), {5, {}, {}});
    algorithm->advantages(batch);
    return algorithm->loss({policy, {}, {}, {}}, batch, global_counts(batch)).loss.item<double>();
  };
  EXPECT_DOUBLE_EQ(loss("token-mean"), 2.5);
  EXPECT_DOUBLE_EQ(loss("token-sum"), 10);
  EXPECT_DOUBLE_EQ(loss("seq-mean-token-sum"), 5);
  EXPECT_DOUBLE_EQ(loss("seq-mean-token-sum-norm"), 1);
  EXPECT_DOUBLE_EQ(loss("seq-mean-token-mean"), 2);
}

TEST(Limits, AtRatioOneTheGradientIsThePolicyGradientForEveryRatioLoss) {
  for (const char* loss : {"clip", "gspo", "cispo", "sapo", "gmpo", "kl_cov", "dppo_tv"}) {
    Worked w;
    w.policy = w.batch.old_logprobs.clone().set_requires_grad(true);
    w.loss({std::string("policy_loss=") + loss, "sapo_tau_neg=1"}).loss.backward();
    const at::Tensor expected = -w.batch.advantages / 4;
    EXPECT_LE((w.policy.grad() - expected).abs().max().item<double>(), 1e-15) << loss;
  }
}

TEST(Limits, WithCoefficientZeroTheReferenceChangesNothing) {
  Worked w;
  const double without = w.value({});
  w.batch.ref_logprobs = w.batch.old_logprobs - 1;
  EXPECT_EQ(w.value({"kl_coef=0"}), without);
  EXPECT_NE(w.value({"kl_coef=0.1"}), without);
}

TEST(Limits, AMicroBatchThatIsAllMaskedHasLossAndGradientZero) {
  for (const char* preset : {"grpo", "dapo", "gspo", "cispo", "sapo", "gmpo", "rloo", "sft"}) {
    Worked w;
    w.batch.mask = at::zeros({4}, at::kBool);
    w.batch.ref_logprobs = w.batch.old_logprobs - 1;
    w.policy.set_requires_grad(true);
    const LossResult result = w.loss({std::string("preset=") + preset, "kl_coef=0.1"});
    result.loss.backward();
    EXPECT_EQ(result.loss.item<double>(), 0) << preset;
    EXPECT_EQ(w.policy.grad().abs().max().item<double>(), 0) << preset;
  }
}

TEST(KlCoef, IsTheOneThatWasSetNotTheInitialOne) {
  Worked w;
  w.batch.ref_logprobs = w.batch.old_logprobs - 1;
  const auto algorithm = make_algorithm(parse_algo({"kl_coef=0.1"}), {});
  algorithm->advantages(w.batch);
  const auto at_coef = [&](double coef) {
    algorithm->set_kl_coef(coef);
    return algorithm->loss({w.policy, {}, {}, {}}, w.batch, global_counts(w.batch)).loss.item<double>();
  };
  const double none = at_coef(0), one = at_coef(1);
  EXPECT_NEAR(at_coef(0.25), none + 0.25 * (one - none), 1e-15);
}

TEST(Preference, DpoIsTheLogSigmoidOfTheDifference) {
  Worked w;
  w.batch.ref_logprobs = w.batch.old_logprobs;
  w.batch.reward = at::Tensor();
  w.policy = w.batch.old_logprobs + at::tensor({0.5, 0.5, -0.5, -0.5}, at::kDouble);
  // h = 1 - (-1) = 2
  EXPECT_NEAR(w.value({"preset=dpo", "dpo_beta=0.5"}), std::log(1 + std::exp(-1)), 1e-15);
  EXPECT_NEAR(w.value({"preset=dpo", "dpo_beta=0.5", "label_smoothing=0.25"}),
              0.75 * std::log(1 + std::exp(-1)) + 0.25 * std::log(1 + std::exp(1)), 1e-15);
  // means: 0.5 - (-0.5) = 1; (1 - 1 / (2 * 0.25))^2
  EXPECT_NEAR(w.value({"preset=dpo", "policy_loss=ipo", "dpo_beta=0.25"}), 1, 1e-15);
}

TEST(Preference, TheRewardModelReadsTheLastCountedToken) {
  Worked w;
  w.batch.reward = at::Tensor();
  w.batch.mask = at::tensor({1, 0, 1, 1}, at::kByte).to(at::kBool);
  w.batch.margins = at::tensor({0.5}, at::kDouble);
  const auto algorithm = make_algorithm(parse_algo({"preset=reward_model"}), {});
  algorithm->advantages(w.batch);
  const at::Tensor values = at::tensor({2.0, 7.0, 7.0, 1.0}, at::kDouble);
  const LossResult result = algorithm->loss({{}, {}, values, {}}, w.batch, global_counts(w.batch));
  EXPECT_NEAR(result.loss.item<double>(), std::log(1 + std::exp(-0.5)), 1e-15);
  EXPECT_DOUBLE_EQ(result.metrics.result("rewards/margins"), 1);
  EXPECT_DOUBLE_EQ(result.metrics.result("rewards/accuracies"), 1);
}

TEST(Shapes, AnArrayOfTheWrongLengthIsRefused) {
  Worked w;
  const auto algorithm = make_algorithm(parse_algo({}), {});
  w.batch.old_logprobs = at::zeros({3}, at::kDouble);
  EXPECT_THROW(algorithm->advantages(w.batch), InvariantError);
  Worked good;
  algorithm->advantages(good.batch);
  EXPECT_THROW(algorithm->loss({at::zeros({5}, at::kDouble), {}, {}, {}}, good.batch, global_counts(good.batch)),
               InvariantError);
}

TEST(LossBatch, SelectTakesCompletionsWithAllTheirArrays) {
  LossBatch batch;
  batch.lengths = {1, 2, 3};
  batch.group_sizes = {2, 1};
  batch.mask = at::ones({6}, at::kBool);
  batch.reward = at::tensor({1.0, 2.0, 3.0}, at::kDouble);
  batch.baseline_rewards = at::tensor({10.0, 20.0}, at::kDouble);
  batch.old_logprobs = at::arange(6, at::kDouble);
  const LossBatch part = batch.select({2, 0});
  EXPECT_THAT(part.lengths, ElementsAre(3, 1));
  EXPECT_THAT(part.group_sizes, ElementsAre(1, 1));
  EXPECT_THAT(to_doubles(part.reward), ElementsAre(3, 1));
  EXPECT_THAT(to_doubles(part.baseline_rewards), ElementsAre(20, 10));
  EXPECT_THAT(to_doubles(part.old_logprobs), ElementsAre(3, 4, 5, 0));
  EXPECT_THROW(batch.select({3}), InvariantError);
}

}  // namespace
}  // namespace temper
