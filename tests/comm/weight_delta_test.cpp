#include "comm/weight_delta.h"

#include <gtest/gtest.h>

#include <vector>

#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

using Bytes = std::vector<std::byte>;

Bytes random_weights(size_t size, uint64_t seed) {
  SplitMix64 random(seed);
  Bytes bytes(size);
  for (std::byte& byte : bytes) byte = static_cast<std::byte>(random.next());
  return bytes;
}

TEST(WeightDelta, GivesTheNextVersionBitForBit) {
  for (const size_t size : {0, 1, 7, 8, 9, 1000, 1 << 20}) {
    const Bytes base = random_weights(size, 1), next = random_weights(size, 2);
    Bytes weights = base;
    apply_delta(encode_delta(base, next), weights);
    EXPECT_EQ(weights, next) << size;
  }
}

TEST(WeightDelta, AChainEndsWhereTheLastVersionIs) {
  Bytes version = random_weights(10'001, 3), reader = version;
  SplitMix64 random(4);
  for (int step = 0; step < 20; ++step) {
    Bytes next = version;
    for (int change = 0; change < 100; ++change)
      next[static_cast<size_t>(random.in_range(0, 10'000))] = static_cast<std::byte>(random.next());
    const std::string delta = encode_delta(version, next);
    EXPECT_LT(delta.size(), next.size() / 5);
    apply_delta(delta, reader);
    version = next;
  }
  EXPECT_EQ(reader, version);
}

TEST(WeightDelta, WhatIsCutOrOfAnotherSizeChangesNothing) {
  const Bytes base = random_weights(1000, 5), next = random_weights(1000, 6);
  const std::string delta = encode_delta(base, next);
  Bytes weights = base;
  for (size_t size = 0; size < delta.size(); size += 13)
    EXPECT_THROW(apply_delta(std::string_view(delta).substr(0, size), weights), FormatError) << size;
  EXPECT_EQ(weights, base);
  Bytes shorter(999), longer(1001);
  EXPECT_THROW(apply_delta(delta, shorter), FormatError);
  EXPECT_THROW(apply_delta(delta, longer), FormatError);
}

}  // namespace
}  // namespace temper
