#include "data/shuffle.h"

#include <gtest/gtest.h>

#include <cmath>
#include <set>
#include <vector>

namespace temper {
namespace {

TEST(ShuffleOrder, EveryPassVisitsEveryLineOnce) {
  for (const int64_t size : {1, 2, 3, 7, 64, 65, 1000}) {
    const ShuffleOrder order(size, 42, true);
    for (int64_t pass = 0; pass < 3; ++pass) {
      std::set<int64_t> seen;
      for (int64_t i = 0; i < size; ++i) seen.insert(order.line(pass * size + i));
      EXPECT_EQ(static_cast<int64_t>(seen.size()), size);
      EXPECT_EQ(*seen.begin(), 0);
      EXPECT_EQ(*seen.rbegin(), size - 1);
    }
  }
}

TEST(ShuffleOrder, PassesAndSeedsDiffer) {
  const ShuffleOrder a(500, 1, true), b(500, 2, true);
  int64_t same_pass = 0, same_seed = 0;
  for (int64_t i = 0; i < 500; ++i) {
    same_pass += a.line(i) == a.line(500 + i);
    same_seed += a.line(i) == b.line(i);
  }
  EXPECT_LT(same_pass, 8);  // one on average
  EXPECT_LT(same_seed, 8);
}

TEST(ShuffleOrder, IsAFunctionOfTheNumberAlone) {
  const ShuffleOrder order(37, 9, true), again(37, 9, true);
  std::vector<int64_t> forward;
  for (int64_t i = 0; i < 80; ++i) forward.push_back(order.line(i));
  for (int64_t i = 79; i >= 0; --i) EXPECT_EQ(again.line(i), forward[static_cast<size_t>(i)]);
}

// Chi-squared over (place, line) of a small permutation: each line at each place equally often over many passes.
TEST(ShuffleOrder, EachLineComesToEachPlaceEquallyOften) {
  constexpr int64_t kSize = 10, kPasses = 4000;
  const ShuffleOrder order(kSize, 5, true);
  std::vector<double> counts(kSize * kSize);
  for (int64_t pass = 0; pass < kPasses; ++pass)
    for (int64_t i = 0; i < kSize; ++i) ++counts[static_cast<size_t>(i * kSize + order.line(pass * kSize + i))];
  double chi2 = 0;
  const double expected = static_cast<double>(kPasses) / kSize;
  for (const double count : counts) chi2 += (count - expected) * (count - expected) / expected;
  EXPECT_LT(chi2, 81 + 5 * std::sqrt(2.0 * 81));  // 81 degrees of freedom
}

TEST(ShuffleOrder, WithoutShufflingItIsTheOrderOfTheFile) {
  const ShuffleOrder order(3, 42, false);
  EXPECT_EQ((std::vector<int64_t>{order.line(0), order.line(1), order.line(2), order.line(3), order.line(7)}),
            (std::vector<int64_t>{0, 1, 2, 0, 1}));
}

}  // namespace
}  // namespace temper
