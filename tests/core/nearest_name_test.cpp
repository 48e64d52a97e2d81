#include "core/nearest_name.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

TEST(NearestName, CountsChangedMissingAndSwappedLetters) {
  const std::vector<std::string> names = {"run", "report", "tokenize", "score"};
  EXPECT_EQ(nearest_name("rnu", names), "run");
  EXPECT_EQ(nearest_name("reprot", names), "report");
  EXPECT_EQ(nearest_name("tokenise", names), "tokenize");
  EXPECT_EQ(nearest_name("scores", names), "score");
  EXPECT_EQ(nearest_name("run", names), "run");
}

TEST(NearestName, TakesTheFirstOfEquallyNearOnesAndNothingOfNone) {
  EXPECT_EQ(nearest_name("x", {"ab", "cd"}), "ab");
  EXPECT_EQ(nearest_name("x", {}), "");
}

}  // namespace
}  // namespace temper
