// Advantages worked out by hand.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>

#include "algos/algorithm.h"
#include "algos/kl.h"
#include "algos/scores.h"
#include "config/load.h"

namespace temper {
namespace {

using ::testing::DoubleNear;
using ::testing::ElementsAre;
using ::testing::Pointwise;

MATCHER_P(Near, tolerance, "") { return std::abs(std::get<0>(arg) - std::get<1>(arg)) <= tolerance; }

// One counted token a completion unless lengths say otherwise.
LossBatch batch_of(std::vector<int64_t> group_sizes, std::vector<double> rewards, std::vector<int64_t> lengths = {}) {
  LossBatch batch;
  batch.group_sizes = std::move(group_sizes);
  batch.lengths = lengths.empty() ? std::vector<int64_t>(rewards.size(), 1) : std::move(lengths);
  batch.reward = at::tensor(rewards, at::kDouble);
  batch.mask = at::ones({batch.num_tokens()}, at::kBool);
  return batch;
}

std::vector<double> advantages_of(const std::vector<std::string>& settings, LossBatch& batch,
                                  const AlgoContext& context = {}) {
  make_algorithm(parse_algo(settings), context)->advantages(batch);
  return to_doubles(batch.advantages);
}

double metric(const AdvantageReport& report, std::string_view name) {
  for (const auto& [known, value] : report.metrics)
    if (known == name) return value;
  ADD_FAILURE() << "no metric " << name;
  return NAN;
}

TEST(GroupAdvantage, IsTheScoreLessTheMeanByTheUnbiasedStd) {
  // mean 2, std sqrt((1 + 0 + 1) / 2) = 1
  LossBatch batch = batch_of({3}, {1, 2, 3});
  EXPECT_THAT(advantages_of({"advantage_eps=0"}, batch), Pointwise(Near(1e-15), std::vector<double>{-1, 0, 1}));
  EXPECT_THAT(advantages_of({"advantage_eps=1"}, batch), Pointwise(Near(1e-15), std::vector<double>{-0.5, 0, 0.5}));
  EXPECT_THAT(advantages_of({"scale_rewards=none"}, batch), Pointwise(Near(1e-15), std::vector<double>{-1, 0, 1}));
}

TEST(GroupAdvantage, MayScaleByTheStdOfTheBatch) {
  // {0, 2, 4, 6}: mean 3, std sqrt((9 + 1 + 1 + 9) / 3)
  LossBatch batch = batch_of({2, 2}, {0, 2, 4, 6});
  const double a = 1 / std::sqrt(20.0 / 3);
  EXPECT_THAT(advantages_of({"scale_rewards=batch", "advantage_eps=0"}, batch),
              Pointwise(Near(1e-15), std::vector<double>{-a, a, -a, a}));
}

TEST(GroupAdvantage, IdenticalRewardsGiveZero) {
  for (const char* estimator : {"grpo", "rloo", "opo", "gpg", "grpo_passk", "reinforce_plus_plus_baseline"}) {
    LossBatch batch = batch_of({3}, {0.1, 0.1, 0.1});  // 0.1 has no exact mean
    EXPECT_THAT(advantages_of({std::string("adv_estimator=") + estimator, "whiten_advantages=false"}, batch),
                ElementsAre(0, 0, 0))
        << estimator;
  }
}

TEST(GroupAdvantage, AGroupOfOneKeepsItsScoreButForTheEps) {
  LossBatch batch = batch_of({1}, {0.5});
  EXPECT_THAT(advantages_of({"advantage_eps=0.25"}, batch), ElementsAre(0.4));
  EXPECT_THAT(advantages_of({"adv_estimator=rloo"}, batch), ElementsAre(0.5));
  EXPECT_THAT(advantages_of({"adv_estimator=opo"}, batch), ElementsAre(0.5));
}

TEST(GroupAdvantage, RlooComparesWithTheMeanOfTheOthers) {
  LossBatch batch = batch_of({3}, {1, 2, 6});
  EXPECT_THAT(advantages_of({"adv_estimator=rloo"}, batch), Pointwise(Near(1e-15), std::vector<double>{-3, -1.5, 4.5}));
}

TEST(GroupAdvantage, OpoWeighsItsBaselineByLength) {
  LossBatch batch = batch_of({2}, {1, 0}, {3, 1});  // baseline 3/4
  EXPECT_THAT(advantages_of({"adv_estimator=opo"}, batch), ElementsAre(0.25, 0.25, 0.25, -0.75));
}

TEST(GroupAdvantage, GpgCountsTheScoresThatAreNotZero) {
  // mean 1/4, B = 4, one score is not 0
  LossBatch batch = batch_of({4}, {1, 0, 0, 0});
  EXPECT_THAT(advantages_of({"adv_estimator=gpg"}, batch), ElementsAre(3, -1, -1, -1));
}

TEST(GroupAdvantage, PasskRewardsTheBestByItsLeadOverTheSecond) {
  LossBatch batch = batch_of({3}, {1, 4, 2});
  EXPECT_THAT(advantages_of({"adv_estimator=grpo_passk", "scale_rewards=none"}, batch), ElementsAre(0, 2, 0));
}

TEST(GroupAdvantage, GdpoNormalisesEachRewardAlone) {
  LossBatch batch = batch_of({2}, {0, 0});
  batch.reward = at::Tensor();
  batch.rewards = at::tensor({0.0, 10.0, 2.0, 10.0}, at::kDouble).view({2, 2});
  // first: (0, 2) -> -1, 1 without scaling, times 0.5; second: identical -> 0
  EXPECT_THAT(
      advantages_of({"adv_estimator=gdpo", "scale_rewards=none", "whiten_advantages=false"}, batch, {0, {}, {0.5, 3}}),
      ElementsAre(-0.5, 0.5));
}

TEST(TokenReturns, DiscountOverCountedTokensOnly) {
  LossBatch batch = batch_of({1}, {1}, {4});
  batch.mask = at::tensor({1, 0, 1, 1}, at::kByte).to(at::kBool);
  EXPECT_THAT(advantages_of({"adv_estimator=reinforce_plus_plus", "gamma=0.5", "whiten_advantages=false"}, batch),
              ElementsAre(0.25, 0, 0.5, 1));
  EXPECT_THAT(to_doubles(batch.returns), ElementsAre(0.25, 0, 0.5, 1));
}

TEST(TokenReturns, RemaxSubtractsTheGreedyReward) {
  LossBatch batch = batch_of({2}, {1, 0}, {2, 1});
  batch.baseline_rewards = at::tensor({0.25}, at::kDouble);
  EXPECT_THAT(advantages_of({"adv_estimator=remax"}, batch), ElementsAre(0.75, 0.75, -0.25));
  EXPECT_THAT(to_doubles(batch.returns), ElementsAre(1, 1, 0));
}

TEST(Gae, RunsBackOverTheCountedTokens) {
  LossBatch batch = batch_of({1}, {2}, {3});
  batch.mask = at::tensor({1, 0, 1}, at::kByte).to(at::kBool);
  batch.old_values = at::tensor({1.0, 9.0, 0.5}, at::kDouble);
  const std::vector<std::string> settings = {"preset=ppo", "gamma=0.5", "lam=0.5", "whiten_advantages=false"};
  // last: 2 - 0.5 = 1.5; first: 0 + 0.5*0.5 - 1 + 0.25*1.5 = -0.375
  EXPECT_THAT(advantages_of(settings, batch), ElementsAre(-0.375, 0, 1.5));
  EXPECT_THAT(to_doubles(batch.returns), ElementsAre(0.625, 0, 2));
  // A step of V = R = 0 at the hole: g = 0.5*0.5 + 0.25*1.5 = 0.625, then 0 + 0 - 1 + 0.25*0.625
  std::vector<std::string> through = settings;
  through.push_back("gae_skip_masked=false");
  EXPECT_THAT(advantages_of(through, batch), ElementsAre(-0.84375, 0, 1.5));
}

TEST(Whitening, HasMeanZeroAndUnbiasedVarianceOne) {
  LossBatch batch = batch_of({1, 1}, {3, 1}, {1, 1});
  // A = 3, 1: mean 2, variance 2
  const double a = 1 / std::sqrt(2 + 1e-8);
  EXPECT_THAT(advantages_of({"adv_estimator=reinforce_plus_plus"}, batch),
              Pointwise(Near(1e-15), std::vector<double>{a, -a}));
  EXPECT_THAT(to_doubles(batch.returns), ElementsAre(3, 1));
}

TEST(Whitening, LeavesOneTokenAlone) {
  LossBatch batch = batch_of({1}, {3});
  EXPECT_THAT(advantages_of({"adv_estimator=reinforce_plus_plus"}, batch), ElementsAre(3));
}

TEST(Distillation, AddsTheDiscountedLogRatioToTheTeacher) {
  LossBatch batch = batch_of({1}, {0}, {3});
  batch.mask = at::tensor({1, 0, 1}, at::kByte).to(at::kBool);
  batch.old_logprobs = at::tensor({-1.0, -5.0, -2.0}, at::kDouble);
  batch.teacher_logprobs = at::tensor({-1.5, -1.0, -1.0}, at::kDouble);
  // x = -2 * (0.5, masked, -1) = (-1, 0, 2); the hole takes a power: -1 + 0.25 * 2
  EXPECT_THAT(advantages_of({"preset=distill", "distill_coef=2", "distill_discount=0.5"}, batch),
              ElementsAre(-0.5, 0, 2));
}

TEST(Scores, OverlongCompletionsLoseUpToThePenalty) {
  LossBatch batch = batch_of({3}, {1, 1, 1}, {4, 6, 8});
  const auto algorithm =
      make_algorithm(parse_algo({"overlong_buffer={len = 4, penalty_factor = 2}", "adv_estimator=rloo"}), {8, {}, {}});
  // 0, -(6 - 4) / 4 * 2, -(8 - 4) / 4 * 2
  EXPECT_DOUBLE_EQ(metric(algorithm->advantages(batch), "reward"), (1 + 0 + -1) / 3.0);
}

TEST(Scores, AFilteredGroupLeavesEveryCount) {
  LossBatch batch = batch_of({2, 2}, {1, 1, 0, 1}, {3, 3, 1, 1});
  const auto algorithm = make_algorithm(parse_algo({"preset=dapo"}), {});
  const AdvantageReport report = algorithm->advantages(batch);
  EXPECT_EQ(metric(report, "training/groups_filtered"), 1);
  EXPECT_EQ(metric(report, "reward"), 0.75);
  EXPECT_EQ(metric(report, "frac_reward_zero_std"), 0.5);
  const GlobalCounts counts = global_counts(batch);
  EXPECT_EQ(counts.num_completions, 2);
  EXPECT_EQ(counts.num_groups, 1);
  EXPECT_EQ(counts.counted_tokens, 2);
}

TEST(Scores, TruncatedCompletionsMayCountForTheirGroupAlone) {
  LossBatch batch = batch_of({2}, {0, 1}, {2, 2});
  batch.truncated = {1, 0};
  const std::vector<double> a = advantages_of({"mask_truncated_completions=true", "scale_rewards=none"}, batch);
  EXPECT_THAT(a, ElementsAre(0, 0, 0.5, 0.5));
  EXPECT_EQ(global_counts(batch).num_completions, 2);
  EXPECT_EQ(global_counts(batch).counted_tokens, 2);
}

TEST(Scores, KlInTheRewardIsTakenFromScoreAndToken) {
  LossBatch batch = batch_of({1}, {1}, {2});
  batch.old_logprobs = at::tensor({-1.0, -2.0}, at::kDouble);
  batch.ref_logprobs = at::tensor({-1.5, -1.0}, at::kDouble);
  const auto algorithm =
      make_algorithm(parse_algo({"preset=reinforce_plus_plus", "kl_coef=0.1", "whiten_advantages=false"}), {});
  const AdvantageReport report = algorithm->advantages(batch);
  // k1 = 0.5, -1: R = -0.05, 1.1
  EXPECT_THAT(to_doubles(batch.advantages), ElementsAre(DoubleNear(1.05, 1e-15), DoubleNear(1.1, 1e-15)));
  ASSERT_TRUE(report.kl.has_value());
  EXPECT_DOUBLE_EQ(*report.kl, -0.25);
}

TEST(KlController, MovesByAtMostAFifthTimesTheBatchByTheHorizon) {
  const AlgoSection adaptive =
      parse_algo({"kl_coef=0.2", "kl_ctrl={type = \"adaptive\", target = 0.1, horizon = 100}"});
  EXPECT_DOUBLE_EQ(next_kl_coef(adaptive, 0.2, 0.11, 50), 0.2 * (1 + (0.11 / 0.1 - 1) * 0.5));
  EXPECT_DOUBLE_EQ(next_kl_coef(adaptive, 0.2, 5, 50), 0.2 * 1.1);
  EXPECT_DOUBLE_EQ(next_kl_coef(adaptive, 0.2, -5, 50), 0.2 * 0.9);
  EXPECT_DOUBLE_EQ(next_kl_coef(parse_algo({"kl_coef=0.2"}), 0.2, 5, 50), 0.2);
}

TEST(RolloutRs, RejectsWhatDriftedAndKeepsTheAdvantages) {
  LossBatch batch = batch_of({2}, {0, 1}, {2, 2});
  batch.old_logprobs = at::tensor({-1.0, -1.0, -1.0, -1.0}, at::kDouble);
  batch.behavior_logprobs = at::tensor({-1.0, -2.0, -1.1, -1.0}, at::kDouble);
  // behavior/old = 1, e^-1, e^-0.1, 1; allowed [0.8, 1.25]
  EXPECT_THAT(advantages_of({"rollout_rs={token_k1 = 1.25}", "scale_rewards=none"}, batch),
              ElementsAre(-0.5, -0.5, 0.5, 0.5));
  EXPECT_THAT(to_doubles(batch.kept), ElementsAre(1, 0, 1, 1));
  EXPECT_EQ(global_counts(batch).kept_tokens, 3);
  EXPECT_EQ(global_counts(batch).counted_tokens, 4);
  // k2 = 0, 0.5, 0.005, 0: the mean of the first completion is 0.25
  advantages_of({"rollout_rs={seq_mean_k2 = 0.1}"}, batch);
  EXPECT_THAT(to_doubles(batch.kept), ElementsAre(0, 0, 1, 1));
}

TEST(RolloutIs, TruncatesOrMasksTheWeights) {
  LossBatch batch = batch_of({1}, {1}, {3});
  batch.old_logprobs = at::tensor({-1.0, -1.0, -1.0}, at::kDouble);
  batch.behavior_logprobs = at::tensor({-1.0 - std::log(3), -1.0, -1.0 + std::log(4)}, at::kDouble);
  // old/behavior = 3, 1, 1/4; product 3/4
  advantages_of({"rollout_is=token", "rollout_is_min=0.5"}, batch);
  EXPECT_THAT(to_doubles(batch.is_weights), Pointwise(Near(1e-15), std::vector<double>{2, 1, 0.5}));
  advantages_of({"rollout_is=token", "rollout_is_min=0.5", "rollout_is_mode=mask"}, batch);
  EXPECT_THAT(to_doubles(batch.is_weights), Pointwise(Near(1e-15), std::vector<double>{0, 1, 0}));
  advantages_of({"rollout_is=sequence"}, batch);
  EXPECT_THAT(to_doubles(batch.is_weights), Pointwise(Near(1e-15), std::vector<double>{0.75, 0.75, 0.75}));
}

}  // namespace
}  // namespace temper
