#include "core/eval_metrics.h"

#include <gtest/gtest.h>

#include <cmath>

#include "core/error.h"

namespace temper {
namespace {

constexpr Verdict kWrong = Verdict::kWrong, kCorrect = Verdict::kCorrect, kFailed = Verdict::kFailed;

TEST(PassAtK, IsOneMinusTheShareOfChoicesThatAreAllWrong) {
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 1), 0.25);
  EXPECT_DOUBLE_EQ(pass_at_k(4, 1, 2), 1 - 3.0 / 6.0);      // C(3,2)/C(4,2)
  EXPECT_DOUBLE_EQ(pass_at_k(5, 2, 2), 1 - 3.0 / 10.0);     // C(3,2)/C(5,2)
  EXPECT_DOUBLE_EQ(pass_at_k(10, 3, 5), 1 - 21.0 / 252.0);  // C(7,5)/C(10,5)
}

TEST(PassAtK, IsZeroWithoutCorrectAndOneWhenEveryChoiceHoldsACorrectOne) {
  EXPECT_EQ(pass_at_k(8, 0, 8), 0.0);
  EXPECT_EQ(pass_at_k(8, 0, 1), 0.0);
  EXPECT_EQ(pass_at_k(8, 1, 8), 1.0);
  EXPECT_EQ(pass_at_k(8, 6, 3), 1.0);
}

TEST(PassAtK, StaysFiniteWhereFactorialsOverflow) { EXPECT_NEAR(pass_at_k(2000, 1, 1000), 0.5, 1e-12); }

TEST(PassAtK, RefusesMoreChoicesThanCompletions) { EXPECT_THROW(pass_at_k(4, 1, 5), InvariantError); }

TEST(EvalMetrics, AgreesWithAHandWorkedTable) {
  const auto metrics =
      eval_metrics({{kCorrect, kWrong}, {kWrong, kCorrect}, {kWrong, kWrong}, {kCorrect, kCorrect}}, 2);
  EXPECT_DOUBLE_EQ(metrics.accuracy, 0.5);    // first and fourth problem
  EXPECT_DOUBLE_EQ(metrics.avg_at_k, 0.5);    // (1/2 + 1/2 + 0 + 1) / 4
  EXPECT_DOUBLE_EQ(metrics.pass_at_k, 0.75);  // all but the third
  EXPECT_EQ(metrics.num_problems, 4);
  EXPECT_EQ(metrics.num_failed, 0);
}

TEST(EvalMetrics, LeavesFailedCompletionsOutAndCountsThem) {
  const auto metrics =
      eval_metrics({{kFailed, kCorrect, kWrong}, {kCorrect, kFailed, kFailed}, {kFailed, kFailed, kFailed}}, 2);
  EXPECT_DOUBLE_EQ(metrics.accuracy, 1.0);  // the second problem alone has a scored first completion
  EXPECT_EQ(metrics.num_problems, 1);
  EXPECT_DOUBLE_EQ(metrics.avg_at_k, 0.75);  // (1/2 + 1) / 2
  EXPECT_DOUBLE_EQ(metrics.pass_at_k, 1.0);  // the first problem alone has two scored
  EXPECT_EQ(metrics.num_failed, 6);
}

TEST(EvalMetrics, OverNoProblemsAreNaNNotZero) {
  const auto metrics = eval_metrics({}, 1);
  EXPECT_TRUE(std::isnan(metrics.accuracy));
  EXPECT_TRUE(std::isnan(metrics.avg_at_k));
  EXPECT_TRUE(std::isnan(metrics.pass_at_k));
}

}  // namespace
}  // namespace temper
