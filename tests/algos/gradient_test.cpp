// Gradients against central differences, in f64. What is stop-gradient is held at the base point.
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "algos/algorithm.h"
#include "algos/kl.h"
#include "algos/value_loss.h"
#include "algos/vocabulary_divergence.h"
#include "config/load.h"
#include "core/format.h"

namespace temper {
namespace {

// d f / d x_t by central differences.
at::Tensor differences(const std::function<double(const at::Tensor&)>& f, const at::Tensor& x) {
  const double h = 1e-6;
  const at::Tensor base = x.detach().contiguous();
  at::Tensor result = at::zeros_like(base);
  for (int64_t i = 0; i < base.numel(); ++i) {
    at::Tensor up = base.clone(), down = base.clone();
    up.view(-1)[i] += h;
    down.view(-1)[i] -= h;
    result.view(-1)[i] = (f(up) - f(down)) / (2 * h);
  }
  return result;
}

at::Tensor gradient_at(const std::function<at::Tensor(const at::Tensor&)>& f, const at::Tensor& x) {
  at::Tensor leaf = x.detach().clone().set_requires_grad(true);
  f(leaf).sum().backward();
  return leaf.grad();
}

void expect_equal(const at::Tensor& got, const at::Tensor& expected, const std::string& what) {
  EXPECT_LE((got - expected).abs().max().item<double>(), 2e-7 * (1 + expected.abs().max().item<double>()))
      << what << "\n"
      << got << "\n"
      << expected;
}

LossBatch batch_of_two_groups() {
  LossBatch batch;
  batch.lengths = {3, 2, 4, 2};
  batch.group_sizes = {2, 2};
  batch.mask = at::tensor({1, 1, 1, 1, 1, 1, 0, 1, 1, 1, 1}, at::kByte).to(at::kBool);
  batch.reward = at::tensor({1.0, 0.0, 0.3, 0.9}, at::kDouble);
  batch.old_logprobs = at::tensor({-1.2, -0.7, -2.0, -0.4, -1.1, -0.9, -3.0, -1.7, -0.2, -0.6, -1.3}, at::kDouble);
  batch.behavior_logprobs =
      batch.old_logprobs + at::tensor({0.1, -0.1, 0.2, 0.0, -0.2, 0.1, 0.0, 0.3, -0.1, 0.1, 0.0}, at::kDouble);
  batch.ref_logprobs = batch.old_logprobs - 0.3;
  return batch;
}

at::Tensor policy_near(const LossBatch& batch) {
  // Ratios inside, below and above the clip range.
  return batch.old_logprobs + at::tensor({0.05, 0.4, -0.5, -0.6, 0.1, 0.02, 9.0, -0.3, 0.35, -0.04, 1.4}, at::kDouble);
}

// Of losses without stop-gradient, or whose stop-gradient form has the plain derivative.
class LossGradient : public ::testing::TestWithParam<std::vector<std::string>> {};

TEST_P(LossGradient, EqualsTheDifferences) {
  const auto algorithm = make_algorithm(parse_algo(GetParam()), {});
  LossBatch batch = batch_of_two_groups();
  algorithm->advantages(batch);
  const GlobalCounts counts = global_counts(batch);
  const at::Tensor policy = policy_near(batch);
  if (algorithm->needs_prepare()) algorithm->prepare(batch, policy, nullptr);  // the selection is held
  const auto f = [&](const at::Tensor& x) { return algorithm->loss({x, {}, {}, {}}, batch, counts).loss; };
  expect_equal(gradient_at(f, policy), differences([&](const at::Tensor& x) { return f(x).item<double>(); }, policy),
               join(GetParam()));
}

INSTANTIATE_TEST_SUITE_P(
    All, LossGradient,
    ::testing::Values(std::vector<std::string>{"policy_loss=clip"},
                      std::vector<std::string>{"policy_loss=clip", "clip_ratio_c=1.1"},
                      // every token of a completion has its ratio and advantage, so the straight-through form of gspo
                      // has the sequence ratio's own derivative under seq-mean-token-mean
                      std::vector<std::string>{"policy_loss=gspo", "clip_ratio_low=0.3", "clip_ratio_high=0.3"},
                      std::vector<std::string>{"policy_loss=sapo"}, std::vector<std::string>{"policy_loss=gmpo"},
                      std::vector<std::string>{"policy_loss=gmpo", "loss_agg_mode=token-mean"},
                      std::vector<std::string>{"policy_loss=clip_cov", "clip_cov_ratio=0.2", "clip_cov_lb=0.01"},
                      std::vector<std::string>{"policy_loss=kl_cov", "kl_cov_ratio=0.3"},
                      std::vector<std::string>{"policy_loss=reinforce"}, std::vector<std::string>{"policy_loss=sft"},
                      std::vector<std::string>{"policy_loss=dpo", "adv_estimator=none"},
                      std::vector<std::string>{"policy_loss=dpo", "adv_estimator=none", "label_smoothing=0.2"},
                      std::vector<std::string>{"policy_loss=ipo", "adv_estimator=none"},
                      std::vector<std::string>{"kl_coef=0.3", "kl_estimator=k1"},
                      std::vector<std::string>{"kl_coef=0.3", "kl_estimator=abs"},
                      std::vector<std::string>{"kl_coef=0.3", "kl_estimator=k2"},
                      std::vector<std::string>{"kl_coef=0.3", "kl_estimator=k3"},
                      std::vector<std::string>{"kl_coef=0.3", "kl_estimator=k3", "kl_clamp=true"},
                      std::vector<std::string>{"rollout_is=token", "rollout_is_max=1.1", "loss_agg_mode=token-sum"},
                      std::vector<std::string>{"rollout_rs={seq_max_k2=0.03}", "kl_coef=0.1"}));

// cispo and dppo_tv: the weight is a constant, so the derivative is -weight * A at the base point.
TEST(LossGradient, OfCispoIsTheClippedRatioTimesTheAdvantage) {
  const auto algorithm =
      make_algorithm(parse_algo({"policy_loss=cispo", "loss_agg_mode=token-sum", "clip_ratio_low=0.3"}), {});
  LossBatch batch = batch_of_two_groups();
  algorithm->advantages(batch);
  const at::Tensor policy = policy_near(batch);
  const auto f = [&](const at::Tensor& x) {
    return algorithm->loss({x, {}, {}, {}}, batch, global_counts(batch)).loss;
  };
  const at::Tensor weight = (policy - batch.old_logprobs).exp().clamp(0.7, 1.2);
  const at::Tensor held = -weight * batch.advantages;
  expect_equal(
      gradient_at(f, policy),
      differences(
          [&](const at::Tensor& x) { return (held * x).masked_fill(batch.mask.logical_not(), 0).sum().item<double>(); },
          policy),
      "cispo");
}

TEST(LossGradient, OfDppoIsTheBoundedRatioTimesTheAdvantageWhereValid) {
  const auto algorithm = make_algorithm(parse_algo({"policy_loss=dppo_tv", "loss_agg_mode=token-sum",
                                                    "clip_ratio_low=0.1", "clip_ratio_high=0.15", "clip_ratio_c=1.3"}),
                                        {});
  LossBatch batch = batch_of_two_groups();
  algorithm->advantages(batch);
  const at::Tensor policy = policy_near(batch);
  const auto f = [&](const at::Tensor& x) {
    return algorithm->loss({x, {}, {}, {}}, batch, global_counts(batch)).loss;
  };
  at::Tensor expected = at::zeros_like(policy);
  int64_t invalid = 0;
  for (int64_t t = 0; t < policy.numel(); ++t) {
    if (!batch.mask[t].item<bool>()) continue;
    const double p = policy[t].item<double>(), o = batch.old_logprobs[t].item<double>(),
                 a = batch.advantages[t].item<double>();
    const bool valid = a > 0 ? std::exp(p) - std::exp(o) <= 0.15 : std::exp(p) - std::exp(o) >= -0.1;
    invalid += !valid;
    if (valid) expected[t] = -a * std::min(std::exp(p - o), 1.3);
  }
  ASSERT_GT(invalid, 0);
  expect_equal(gradient_at(f, policy), expected, "dppo_tv");
}

// k1+, abs+, k3+: another value, k2's derivative.
TEST(KlGradient, OfAStraightThroughEstimatorIsThatOfK2) {
  const at::Tensor d = at::tensor({-1.5, -0.2, 0.4, 2.0}, at::kDouble);
  const at::Tensor expected = differences([](const at::Tensor& x) { return (x * x * 0.5).sum().item<double>(); }, d);
  for (const auto& [plus, plain] : {std::pair{KlEstimatorKind::kK1Plus, KlEstimatorKind::kK1},
                                    {KlEstimatorKind::kAbsPlus, KlEstimatorKind::kAbs},
                                    {KlEstimatorKind::kK3Plus, KlEstimatorKind::kK3}}) {
    const auto f = [plus = plus](const at::Tensor& x) { return kl_estimate(x, plus, false); };
    expect_equal(gradient_at(f, d), expected, std::string(to_string(plus)));
    EXPECT_TRUE(at::allclose(f(d), kl_estimate(d, plain, false), 0, 1e-15));
  }
}

TEST(KlGradient, IsZeroWhereTheClampActs) {
  const at::Tensor d = at::tensor({-30.0, -3.0, -1.0, 30.0}, at::kDouble);
  const auto f = [](const at::Tensor& x) { return kl_estimate(x, KlEstimatorKind::kK3, true); };
  const double e = std::exp(1.0);
  EXPECT_TRUE(at::allclose(f(d), at::tensor({10.0, 10.0, e - 2, 10.0}, at::kDouble)));
  // 30 is clamped to -20, where e^x - x - 1 = 19 exceeds 10 as well; e^3 - 4 = 16.1 does too.
  EXPECT_TRUE(at::allclose(gradient_at(f, d), at::tensor({0.0, 0.0, 1 - e, 0.0}, at::kDouble)));
}

TEST(ValueLossGradient, EqualsTheDifferencesInsideAndOutsideTheClip) {
  const at::Tensor old = at::tensor({0.0, 0.0, 0.0, 0.0, 0.0}, at::kDouble),
                   returns = at::tensor({1.0, 1.0, -1.0, 0.1, 2.0}, at::kDouble);
  const at::Tensor values = at::tensor({0.3, 0.9, 0.8, -0.7, -0.9}, at::kDouble);
  const auto f = [&](const at::Tensor& x) { return value_loss(x, old, returns, 0.5).loss; };
  expect_equal(gradient_at(f, values),
               differences([&](const at::Tensor& x) { return f(x).sum().item<double>(); }, values), "value");
  // By hand: inside; clipped to 0.5, (0.5 - 1)^2 > (0.9 - 1)^2: constant; clipped to 0.5, (1.5)^2 < (1.8)^2: unclipped;
  // clipped to -0.5, 0.36 < 0.64: unclipped; clipped to -0.5, 6.25 < 8.41: unclipped.
  EXPECT_TRUE(at::allclose(gradient_at(f, values), at::tensor({-0.7, 0.0, 1.8, -0.8, -2.9}, at::kDouble)));
}

TEST(VocabularyDivergenceGradient, EqualsTheDifferences) {
  const at::Tensor student = at::tensor({0.3, -1.2, 0.8, 0.1, 1.5, -0.4, 0.2, 0.9}, at::kDouble).view({2, 4});
  const at::Tensor teacher = at::tensor({1.3, 0.2, -0.8, 0.4, 0.5, 0.6, -1.2, 0.3}, at::kDouble).view({2, 4});
  for (const char* loss : {"forward_kl", "reverse_kl", "jsd"}) {
    AlgoSection settings =
        parse_algo({std::string("distill_loss=") + loss, "distill_temperature=1.4", "distill_beta=0.3"});
    const auto f = [&](const at::Tensor& x) { return vocabulary_divergence(x, teacher, settings); };
    expect_equal(gradient_at(f, student),
                 differences([&](const at::Tensor& x) { return f(x).sum().item<double>(); }, student), loss);
  }
}

}  // namespace
}  // namespace temper
