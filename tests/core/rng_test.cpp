#include "core/rng.h"

#include <gtest/gtest.h>

namespace temper {
namespace {

TEST(SplitMix64, SeedOneGivesTheKnownAdditionProblems) {
  SplitMix64 random(1);
  const int expected[][2] = {{6, 8}, {4, 3}, {4, 6}, {1, 4}, {1, 2}, {7, 8}};
  for (const auto& [a, b] : expected) {
    EXPECT_EQ(random.in_range(1, 9), a);
    EXPECT_EQ(random.in_range(1, 9), b);
  }
}

// Known answers from the Random123 distribution (kat_vectors, philox4x32-10).
TEST(Philox, MatchesThePublishedKnownAnswers) {
  EXPECT_EQ(philox4x32({0, 0, 0, 0}, {0, 0}),
            (std::array<uint32_t, 4>{0x6627e8d5, 0xe169c58d, 0xbc57ac4c, 0x9b00dbd8}));
  EXPECT_EQ(philox4x32({0x243f6a88, 0x85a308d3, 0x13198a2e, 0x03707344}, {0xa4093822, 0x299f31d0}),
            (std::array<uint32_t, 4>{0xd16cfe09, 0x94fdcceb, 0x5001e420, 0x24126ea1}));
}

TEST(UniformDraw, EachCoordinateChangesIt) {
  const DrawKey key{7, 3, 1, 5};
  const double base = uniform_draw(key);
  EXPECT_NE(base, uniform_draw({8, 3, 1, 5}));
  EXPECT_NE(base, uniform_draw({7, 4, 1, 5}));
  EXPECT_NE(base, uniform_draw({7, 3, 2, 5}));
  EXPECT_NE(base, uniform_draw({7, 3, 1, 6}));
  EXPECT_EQ(base, uniform_draw(key));
  EXPECT_GE(base, 0.0);
  EXPECT_LT(base, 1.0);
}

}  // namespace
}  // namespace temper
