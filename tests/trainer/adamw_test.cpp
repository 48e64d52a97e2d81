#include "trainer/adamw.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <cmath>

#include "trainer/train_loop.h"

namespace temper {
namespace {

std::vector<ParameterSpec> layout() { return {{"matrix", {2, 2}, 0}, {"norm", {3}, 16}}; }

AdamW optimizer_of_all(const AdamWSettings& settings) {
  return AdamW(layout(), settings, ShardPlan(layout(), Shard::kNone, 0, 1));
}

FlatParameters filled(std::vector<float> matrix, std::vector<float> norm) {
  FlatParameters parameters(layout());
  parameters["matrix"].copy_(at::tensor(matrix).view({2, 2}));
  parameters["norm"].copy_(at::tensor(norm));
  return parameters;
}

// Two parameters, learning rate 0.1, betas 0.9 and 0.99, weight decay 0.5, by hand.
// Step 1: m = 0.1 g, v = 0.01 g^2, corrected g and g^2: every element moves by lr (eps is small), after decay p (1 -
// 0.05).
TEST(AdamW, FirstStepMovesEachElementByTheLearningRate) {
  const FlatParameters parameters = filled({1, -2, 3, 0}, {1, 1, 1});
  const FlatParameters gradients = filled({0.5, -0.25, 4, 0}, {2, -2, 0});
  AdamW optimizer = optimizer_of_all({0.9, 0.99, 1e-12, 0.5});
  optimizer.step({{0, parameters.flat()}}, {{0, gradients.flat()}}, 0.1, 1.0);
  EXPECT_TRUE(at::allclose(parameters["matrix"].flatten(), at::tensor({0.95f - 0.1f, -1.9f + 0.1f, 2.85f - 0.1f, 0.0f}),
                           1e-6, 1e-7));
  EXPECT_TRUE(at::allclose(parameters["norm"], at::tensor({0.9f, 1.1f, 1.0f}), 1e-6, 1e-7));  // norms do not decay
  EXPECT_EQ(gradients.flat().abs().sum().item<float>(), 0);
  EXPECT_EQ(optimizer.num_steps(), 1);
}

TEST(AdamW, FollowsThePublishedRecursionForManySteps) {
  const FlatParameters parameters = filled({1, -2, 3, 0.5}, {1, 2, 3});
  AdamW optimizer = optimizer_of_all({0.9, 0.999, 1e-8, 0.01});
  double p = 1, m = 0, v = 0;
  for (int t = 1; t <= 50; ++t) {
    const double g = std::sin(t), scale = 0.5, lr = 0.01 * t;
    const FlatParameters gradients = filled({static_cast<float>(g), 0, 0, 0}, {0, 0, 0});
    optimizer.step({{0, parameters.flat()}}, {{0, gradients.flat()}}, lr, scale);
    p -= lr * 0.01 * p;
    m = 0.9 * m + 0.1 * g * scale;
    v = 0.999 * v + 0.001 * g * scale * g * scale;
    p -= lr * (m / (1 - std::pow(0.9, t))) / (std::sqrt(v / (1 - std::pow(0.999, t))) + 1e-8);
  }
  EXPECT_NEAR(parameters["matrix"][0][0].item<float>(), p, 1e-5);
}

TEST(GlobalNorm, IsThatOfAllElements) {
  const at::Tensor flat = at::ones({200003});
  EXPECT_NEAR(global_norm(flat), std::sqrt(200003.0), 1e-9);
}

TEST(LearningRate, WarmsUpAndDecaysAsScheduled) {
  OptimSection optim;
  optim.learning_rate = 1.0;
  optim.warmup_steps = 4;
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(optim, 1, 10), 0.25);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(optim, 4, 10), 1.0);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(optim, 10, 10), 1.0);
  optim.lr_scheduler_type = LrScheduler::kLinear;
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(optim, 5, 10), 1.0);
  EXPECT_DOUBLE_EQ(scheduled_learning_rate(optim, 8, 10), 0.5);
  optim.lr_scheduler_type = LrScheduler::kCosine;
  EXPECT_NEAR(scheduled_learning_rate(optim, 8, 10), 0.5, 1e-12);
}

}  // namespace
}  // namespace temper
