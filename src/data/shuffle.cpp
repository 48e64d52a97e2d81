#include "data/shuffle.h"

#include <bit>

#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

constexpr uint32_t kRounds = 8;

// A Feistel network with Philox as the round function: a permutation of numbers of 2 * half_bits bits, by key and pass.
uint64_t permute(uint64_t value, int half_bits, uint64_t seed, uint64_t pass) {
  const uint64_t mask = (uint64_t{1} << half_bits) - 1;
  uint64_t left = value >> half_bits, right = value & mask;
  for (uint32_t round = 0; round < kRounds; ++round) {
    const auto bits = philox4x32(
        {static_cast<uint32_t>(right), round, static_cast<uint32_t>(pass), static_cast<uint32_t>(pass >> 32)},
        {static_cast<uint32_t>(seed), static_cast<uint32_t>(seed >> 32)});
    const uint64_t next = (left ^ bits[0]) & mask;
    left = right;
    right = next;
  }
  return left << half_bits | right;
}

}  // namespace

ShuffleOrder::ShuffleOrder(int64_t size, uint64_t seed, bool shuffle) : size_(size), seed_(seed), shuffle_(shuffle) {
  TEMPER_CHECK(size > 0, "a data set of {} lines cannot be passed over", size);
  half_bits_ = std::max(1, (static_cast<int>(std::bit_width(static_cast<uint64_t>(size - 1))) + 1) / 2);
  TEMPER_CHECK(half_bits_ <= 31, "{} lines are too many", size);
}

int64_t ShuffleOrder::line(int64_t serial) const {
  TEMPER_CHECK(serial >= 0, "running number {}", serial);
  const int64_t pass = serial / size_;
  uint64_t value = static_cast<uint64_t>(serial % size_);
  if (!shuffle_) return static_cast<int64_t>(value);
  do {  // numbers beyond the data set walk on; at most three out of four are
    value = permute(value, half_bits_, seed_, static_cast<uint64_t>(pass));
  } while (value >= static_cast<uint64_t>(size_));
  return static_cast<int64_t>(value);
}

}  // namespace temper
