#include "data/utf8.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

TEST(BegunUtf8Suffix, IsThePartOfACharacterThatMoreBytesMayComplete) {
  EXPECT_EQ(begun_utf8_suffix(""), 0u);
  EXPECT_EQ(begun_utf8_suffix("abc"), 0u);
  EXPECT_EQ(begun_utf8_suffix("caf\xC3\xA9"), 0u);
  EXPECT_EQ(begun_utf8_suffix("caf\xC3"), 1u);
  EXPECT_EQ(begun_utf8_suffix("\xE2\x82"), 2u);
  EXPECT_EQ(begun_utf8_suffix("x\xF0\x9F\x98"), 3u);
  EXPECT_EQ(begun_utf8_suffix("\xF0\x9F\x98\x80"), 0u);
}

TEST(BegunUtf8Suffix, IsNothingWhereNoByteCouldCompleteIt) {
  EXPECT_EQ(begun_utf8_suffix("\xFF"), 0u);
  EXPECT_EQ(begun_utf8_suffix("\x80"), 0u);
  EXPECT_EQ(begun_utf8_suffix("\xC0"), 0u);
  EXPECT_EQ(begun_utf8_suffix("\xE0\x80"), 0u);      // too long a form
  EXPECT_EQ(begun_utf8_suffix("\xED\xA0"), 0u);      // a surrogate
  EXPECT_EQ(begun_utf8_suffix("\xF4\x90\x80"), 0u);  // beyond U+10FFFF
  EXPECT_EQ(begun_utf8_suffix("\xE2\x82\x41"), 0u);
}

}  // namespace
}  // namespace temper
