#include "rollout/stop_strings.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

TEST(StopMatcher, FindsAStringAcrossTokens) {
  StopMatcher matcher;
  const std::vector<std::string> stop = {"\n\nQ:"};
  EXPECT_FALSE(matcher.append("yes\n", stop));
  EXPECT_FALSE(matcher.append("\n", stop));
  EXPECT_FALSE(matcher.append("", stop));
  EXPECT_TRUE(matcher.append("Q: and", stop));
}

TEST(StopMatcher, FindsAStringThatBeginsAgainInsideItself) {
  StopMatcher matcher;
  const std::vector<std::string> stop = {"aab"};
  EXPECT_FALSE(matcher.append("a", stop));
  EXPECT_FALSE(matcher.append("a", stop));
  EXPECT_FALSE(matcher.append("a", stop));
  EXPECT_TRUE(matcher.append("b", stop));
}

TEST(StopMatcher, FindsACharacterWhoseBytesComeApart) {
  StopMatcher matcher;
  const std::vector<std::string> stop = {"xyz", "\xC3\xA9"};
  EXPECT_FALSE(matcher.append("caf\xC3", stop));
  EXPECT_TRUE(matcher.append("\xA9", stop));
}

TEST(CutAtStop, EndsBeforeTheFirstOfThem) {
  EXPECT_EQ(cut_at_stop("one STOP two END", {"END", "STOP"}), "one ");
  EXPECT_EQ(cut_at_stop("one two", {"END"}), "one two");
  EXPECT_EQ(cut_at_stop("", {"END"}), "");
}

}  // namespace
}  // namespace temper
