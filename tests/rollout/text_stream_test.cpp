#include "rollout/text_stream.h"

#include <gtest/gtest.h>

#include "core/rng.h"
#include "data/utf8.h"
#include "rollout/stop_strings.h"

namespace temper {
namespace {

TEST(TextStream, ShowsTextAtOnce) {
  TextStream stream({});
  EXPECT_EQ(stream.append("Hello"), "Hello");
  EXPECT_EQ(stream.append(", you"), ", you");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, HoldsACharacterBackUntilItIsWhole) {
  TextStream stream({});
  EXPECT_EQ(stream.append("a\xF0\x9F"), "a");
  EXPECT_EQ(stream.append("\x98"), "");
  EXPECT_EQ(stream.append("\x80!"), "\xF0\x9F\x98\x80!");
}

TEST(TextStream, RepairsWhatNoCharacterCanBecome) {
  TextStream stream({});
  EXPECT_EQ(stream.append("\xE2\x82"), "");
  EXPECT_EQ(stream.append("x"), "\uFFFDx");
  EXPECT_EQ(stream.append("\xFF"), "\uFFFD");
  EXPECT_EQ(stream.append("\xC3"), "");
  EXPECT_EQ(stream.finish(), "\uFFFD");
}

TEST(TextStream, NeverShowsAPartOfAStopString) {
  TextStream stream({"END", "\n\n"});
  EXPECT_EQ(stream.append("one E"), "one ");
  EXPECT_EQ(stream.append("N"), "");
  EXPECT_EQ(stream.append("E"), "EN");  // the second E may begin it
  EXPECT_EQ(stream.append("ND two"), "");
  EXPECT_EQ(stream.append(" three"), "");
  EXPECT_EQ(stream.finish(), "");
}

TEST(TextStream, ShowsAtTheEndWhatWasNoStopString) {
  TextStream stream({"END"});
  EXPECT_EQ(stream.append("one EN"), "one ");
  EXPECT_EQ(stream.finish(), "EN");
}

TEST(TextStream, CutsBeforeTheFirstOfSeveralStopStrings) {
  TextStream stream({"bc", "abcd"});
  EXPECT_EQ(stream.append("xabcd"), "x");
}

// However the bytes are cut into tokens: the pieces together are the text that the engine gives at the end, each piece
// is valid, and none holds a stop string.
TEST(TextStream, PiecesTogetherAreTheEnginesText) {
  const std::vector<std::vector<std::string>> stops = {{}, {"ab"}, {"aab", "b\xC3\xA9"}, {"\xE2\x82\xAC", "ba"}};
  const std::string alphabet = "aab\xC3\xA9\xE2\x82\xAC\xF0\x9F\x98\x80\xFF";
  SplitMix64 random(1);
  for (int trial = 0; trial < 20000; ++trial) {
    const std::vector<std::string>& stop = stops[static_cast<size_t>(trial) % stops.size()];
    TextStream stream(stop);
    StopMatcher matcher;
    std::string all, shown;
    bool stopped = false;
    const int64_t num_tokens = random.in_range(0, 12);
    for (int64_t i = 0; i < num_tokens && !stopped; ++i) {
      std::string token;
      for (int64_t length = random.in_range(0, 3); length > 0; --length)
        token += alphabet[static_cast<size_t>(random.in_range(0, static_cast<int64_t>(alphabet.size()) - 1))];
      all += token;
      stopped = matcher.append(token, stop);
      const std::string piece = stream.append(token);
      ASSERT_EQ(valid_utf8_prefix(piece), piece.size());
      shown += piece;
    }
    shown += stream.finish();
    ASSERT_EQ(shown, cut_at_stop(to_valid_utf8(all), stop));
  }
}

}  // namespace
}  // namespace temper
