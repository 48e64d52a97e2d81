#include "algos/metric_sums.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

TEST(MetricSums, EachReductionCombinesTwoParts) {
  MetricSums a, b;
  a.add_sum("loss", 0.25);
  b.add_sum("loss", 0.5);
  a.add_mean("entropy", 6, 4);
  b.add_mean("entropy", 3, 2);
  a.add({"low", Reduction::kMin, 2, 3});
  b.add({"low", Reduction::kMin, 1, 1});
  a.add({"high", Reduction::kMax, 2, 3});
  b.add({"high", Reduction::kMax, 1, 1});
  a.merge(b);
  EXPECT_DOUBLE_EQ(a.result("loss"), 0.75);
  EXPECT_DOUBLE_EQ(a.result("entropy"), 1.5);
  EXPECT_DOUBLE_EQ(a.result("low"), 1);
  EXPECT_DOUBLE_EQ(a.result("high"), 2);
}

TEST(MetricSums, APartThatSawNothingChangesNoExtremeAndNoMean) {
  MetricSums a, b;
  a.add({"high", Reduction::kMax, -3, 2});
  b.add({"high", Reduction::kMax, 0, 0});
  a.add_mean("kl", 1, 2);
  b.add_mean("kl", 0, 0);
  a.merge(b);
  EXPECT_DOUBLE_EQ(a.result("high"), -3);
  EXPECT_DOUBLE_EQ(a.result("kl"), 0.5);
  b.merge(b);
  EXPECT_DOUBLE_EQ(b.result("high"), 0);
  EXPECT_DOUBLE_EQ(b.result("kl"), 0);
}

TEST(MetricSums, IngredientsAreSummedButNotAmongTheResults) {
  MetricSums a;
  a.add({"kl_term", Reduction::kSum, 0.5, 1, /*logged=*/false});
  a.add_sum("loss", 1);
  ASSERT_EQ(a.results().size(), 1u);
  EXPECT_EQ(a.results()[0].first, "loss");
  EXPECT_DOUBLE_EQ(a.result("kl_term"), 0.5);
}

}  // namespace
}  // namespace temper
