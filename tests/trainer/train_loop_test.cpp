// A step of training from given groups, on a tiny model: what each algorithm needs is there, and what can go wrong is
// defined.
#include "trainer/train_loop.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "tests/trainer/loop_fixture.h"

namespace temper {
namespace {

double value(const MetricRecord& record, const char* name) {
  const double* found = record.find(name);
  EXPECT_NE(found, nullptr) << name;
  return found != nullptr ? *found : std::nan("");
}

void expect_finite(const MetricRecord& record) {
  for (const auto& [name, number] : record.values) EXPECT_TRUE(std::isfinite(number)) << name;
}

TEST(TrainLoop, EveryPresetTakesAStepAndChangesTheWeights) {
  for (const Preset preset : {Preset::kGrpo,
                              Preset::kDapo,
                              Preset::kDrGrpo,
                              Preset::kGspo,
                              Preset::kCispo,
                              Preset::kSapo,
                              Preset::kGmpo,
                              Preset::kRloo,
                              Preset::kRemax,
                              Preset::kReinforcePlusPlus,
                              Preset::kReinforcePlusPlusBaseline,
                              Preset::kOpo,
                              Preset::kGdpo,
                              Preset::kGpg,
                              Preset::kPpo,
                              Preset::kDistill,
                              Preset::kGkd,
                              Preset::kSft,
                              Preset::kDpo,
                              Preset::kRewardModel}) {
    Fixture fixture(preset, [](StageConfig& config) {
      if (config.algo.trains_on_rollouts()) config.algo.kl_coef = 0.01;
    });
    const at::Tensor before = fixture.policy->parameters().flat().clone();
    TrainLoop loop = fixture.loop(first_token_reward, fixture.config.algo.trains_on_pairs() ? 2 : 4);
    const StepResult result = loop.step();
    expect_finite(result.record);
    EXPECT_GT(value(result.record, "grad_norm"), 0) << to_string(preset);
    EXPECT_FALSE(at::equal(before, fixture.policy->parameters().flat())) << to_string(preset);
    EXPECT_EQ(loop.counters().policy_version, 1);
  }
}

TEST(TrainLoop, CovarianceLossesSelectTokensOfTheWholeMiniBatch) {
  for (const PolicyLoss loss : {PolicyLoss::kClipCov, PolicyLoss::kKlCov}) {
    Fixture fixture(Preset::kGrpo, [loss](StageConfig& config) {
      config.algo.policy_loss = loss;
      config.algo.num_minibatches = 2;
      config.algo.clip_cov_ratio = config.algo.kl_cov_ratio = 0.1;
      config.algo.clip_cov_lb = -100;
      config.algo.clip_cov_ub = 100;
    });
    TrainLoop loop = fixture.loop(first_token_reward);
    const StepResult result = loop.step();
    expect_finite(result.record);
    EXPECT_NEAR(value(result.record, "clip_ratio/cov_mean"), 0.1, 0.03);
  }
}

TEST(TrainLoop, LaterMiniBatchesSeeWhatEarlierOnesLearned) {
  Fixture fixture(Preset::kGrpo, [](StageConfig& config) { config.algo.num_epochs = 3; });
  TrainLoop loop = fixture.loop(first_token_reward);
  const StepResult result = loop.step();
  EXPECT_EQ(value(result.record, "training/num_updates"), 3);
  EXPECT_GT(std::abs(value(result.record, "ppo_kl")), 1e-6);  // the policy left the one that drew
  EXPECT_EQ(fixture.optimizer->num_steps(), 3);
}

TEST(TrainLoop, AStepEndsEarlyOnceThePolicyHasDrifted) {
  Fixture fixture(Preset::kGrpo, [](StageConfig& config) {
    config.algo.num_epochs = 20;
    config.algo.early_stop_kl = 0.01;
    config.optim.learning_rate = 5e-2;
  });
  TrainLoop loop = fixture.loop(first_token_reward);
  const StepResult result = loop.step();
  EXPECT_EQ(value(result.record, "training/stopped_early"), 1);
  EXPECT_LT(fixture.optimizer->num_steps(), 20);
  EXPECT_GE(fixture.optimizer->num_steps(), 1);
  EXPECT_EQ(fixture.policy->gradients().flat().abs().max().item<float>(), 0);
}

TEST(TrainLoop, FilteredGroupsAreReplacedAndOnlySoOften) {
  const auto odd_ones_have_spread = [](int64_t serial, int64_t i) { return serial % 2 == 0 ? 1.0 : i % 2; };
  Fixture fixture(Preset::kDapo);
  TrainLoop loop = fixture.loop(odd_ones_have_spread);
  const StepResult result = loop.step();
  // 4 prompts give 2 groups, 2 more give 1, 1 more (serial 6) none, 1 more (serial 7) the last.
  EXPECT_EQ(fixture.asked, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7}));
  EXPECT_EQ(value(result.record, "training/refills"), 3);
  EXPECT_EQ(value(result.record, "training/groups_filtered"), 4);
  EXPECT_EQ(loop.counters().next_serial, 8);

  Fixture bounded(Preset::kDapo, [](StageConfig& config) { config.algo.max_refills = 2; });
  TrainLoop bounded_loop = bounded.loop([](int64_t, int64_t) { return 1.0; });
  const at::Tensor before = bounded.policy->parameters().flat().clone();
  const StepResult nothing = bounded_loop.step();
  expect_finite(nothing.record);
  EXPECT_EQ(bounded.asked.size(), 12u);
  EXPECT_EQ(value(nothing.record, "grad_norm"), 0);
  EXPECT_TRUE(at::equal(before, bounded.policy->parameters().flat()));
}

TEST(TrainLoop, DegenerateBatchesGiveADefinedStep) {
  const double nan = std::nan("");
  const std::vector<std::pair<const char*, RewardOf>> cases = {
      {"all rewards equal", [](int64_t, int64_t) { return 0.5; }},
      {"all rewards failed", [nan](int64_t, int64_t) { return nan; }},
      {"groups of one", [nan](int64_t, int64_t i) { return i == 2 ? 1.0 : nan; }},
      {"one group left", [nan](int64_t serial, int64_t i) { return serial == 1 ? 1.0 * static_cast<double>(i) : nan; }},
  };
  for (const Preset preset : {Preset::kGrpo, Preset::kDrGrpo, Preset::kRloo, Preset::kPpo, Preset::kReinforcePlusPlus,
                              Preset::kDistill, Preset::kGkd, Preset::kGspo})
    for (const auto& [name, reward] : cases) {
      SCOPED_TRACE(testing::Message() << to_string(preset) << ", " << name);
      Fixture fixture(preset, [](StageConfig& config) { config.algo.kl_coef = 0.01; });
      TrainLoop loop = fixture.loop(reward);
      expect_finite(loop.step().record);
      EXPECT_TRUE(at::isfinite(fixture.policy->parameters().flat()).all().item<bool>());
    }
}

TEST(TrainLoop, TruncatedCompletionsMayAllBeMasked) {
  Fixture fixture(Preset::kGrpo, [](StageConfig& config) { config.algo.mask_truncated_completions = true; });
  TrainLoop loop = fixture.loop([&](int64_t first, int64_t count) {
    auto groups = fixture.groups(first, count, 4, first_token_reward);
    for (RolloutGroup& group : groups)
      for (Completion& completion : group.completions) completion.finish_reason = FinishReason::kLength;
    return groups;
  });
  const StepResult result = loop.step();
  expect_finite(result.record);
  EXPECT_EQ(value(result.record, "grad_norm"), 0);
}

TEST(TrainLoop, ACriticLearnsTheRewardAndExplainsIt) {
  for (const bool shared : {false, true}) {
    Fixture fixture(Preset::kPpo, [shared](StageConfig& config) {
      config.critic.shared_backbone = shared;
      config.algo.num_epochs = 4;
      config.algo.value_clip = 0;
    });
    // The same groups every step, with rewards by their prompt: the value before each token can be known.
    TrainLoop loop = fixture.loop([&](int64_t, int64_t count) {
      auto groups = fixture.groups(0, count, 2, [](int64_t serial, int64_t) { return serial % 2 == 0 ? 1.0 : -1.0; });
      return groups;
    });
    const double first = value(loop.step().record, "value_loss");
    MetricRecord last;
    for (int step = 0; step < 25; ++step) last = loop.step().record;
    EXPECT_LT(value(last, "value_loss"), 0.1 * first) << "shared " << shared;
    EXPECT_GT(value(last, "explained_variance"), 0.8) << "shared " << shared;
  }
}

TEST(TrainLoop, ARewardModelLearnsToPreferTheChosen) {
  Fixture fixture(Preset::kRewardModel);
  TrainLoop loop =
      fixture.loop([&](int64_t, int64_t count) { return fixture.groups(0, count, 2, first_token_reward); });
  const MetricRecord first = loop.step().record;
  EXPECT_NEAR(value(first, "loss"), std::log(2.0), 1e-6);  // a new head says 0
  MetricRecord last;
  for (int step = 0; step < 20; ++step) last = loop.step().record;
  EXPECT_EQ(value(last, "rewards/accuracies"), 1);
  const auto evaluated = loop.evaluate(build_step_batch(fixture.groups(0, 4, 2, first_token_reward), {}));
  for (const auto& [name, number] : evaluated)
    if (name == "loss") EXPECT_LT(number, 0.1);
}

TEST(TrainLoop, DistillationMovesTheStudentTowardsTheTeacher) {
  for (const Preset preset : {Preset::kDistill, Preset::kGkd}) {
    Fixture fixture(preset, [](StageConfig& config) { config.optim.learning_rate = 3e-3; });
    TrainLoop loop =
        fixture.loop([&](int64_t, int64_t count) { return fixture.groups(0, count, 4, first_token_reward); });
    const char* metric = preset == Preset::kGkd ? "distill_loss" : "teacher_kl";
    const double first = value(loop.step().record, metric);
    MetricRecord last;
    for (int step = 0; step < 30; ++step) last = loop.step().record;
    EXPECT_LT(std::abs(value(last, metric)), 0.7 * std::abs(first)) << to_string(preset);
  }
}

TEST(TrainLoop, AnEntropyBonusRaisesTheEntropy) {
  const auto equal = [](int64_t, int64_t) { return 1.0; };  // no advantage: the bonus is alone
  Fixture fixture(Preset::kGrpo, [](StageConfig& config) { config.algo.entropy_coef = 0.05; });
  TrainLoop loop = fixture.loop([&](int64_t, int64_t count) { return fixture.groups(0, count, 4, equal); });
  const double first = value(loop.step().record, "entropy");
  MetricRecord last;
  for (int step = 0; step < 10; ++step) last = loop.step().record;
  EXPECT_GT(value(last, "entropy"), first + 0.2);
}

TEST(TrainLoop, RecomputedActivationsGiveTheSameBits) {
  std::vector<at::Tensor> weights;
  for (const bool recompute : {false, true}) {
    Fixture fixture(Preset::kPpo, [recompute](StageConfig& config) { config.train.recompute = recompute; });
    TrainLoop loop = fixture.loop(first_token_reward);
    for (int step = 0; step < 3; ++step) loop.step();
    weights.push_back(fixture.policy->parameters().flat());
  }
  EXPECT_TRUE(at::equal(weights[0], weights[1]));
}

TEST(TrainLoop, TheTokenBudgetDoesNotChangeWhatIsLearned) {
  for (const Preset preset : {Preset::kPpo, Preset::kDpo, Preset::kRewardModel, Preset::kGkd}) {
    std::vector<at::Tensor> weights;
    for (const int64_t budget : {8, 4096}) {
      Fixture fixture(preset, [budget](StageConfig& config) {
        config.train.max_tokens_per_micro_batch = budget;
        config.optim.learning_rate = 1e-3;
      });
      TrainLoop loop = fixture.loop(first_token_reward, fixture.config.algo.trains_on_pairs() ? 2 : 4);
      loop.step();
      weights.push_back(fixture.policy->parameters().flat());
    }
    // AdamW's first step is the sign of the gradient: what is near zero may fall either way.
    const double far = ((weights[0] - weights[1]).abs() > 1e-5).to(at::kDouble).mean().item<double>();
    EXPECT_LT(far, 0.01) << to_string(preset);
  }
}

}  // namespace
}  // namespace temper
