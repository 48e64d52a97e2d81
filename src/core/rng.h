// Random numbers. SplitMix64 for streams of generated problems and shuffles; Philox for sampling, where a draw depends
// on its coordinates alone (seed, serial, completion, position) and never on what was drawn before it.
#pragma once
#include <array>
#include <cstdint>

namespace temper {

// Steele, Lea, Flood 2014, "Fast splittable pseudorandom number generators".
class SplitMix64 {
 public:
  explicit SplitMix64(uint64_t state) : state_(state) {}
  uint64_t next() {
    uint64_t z = (state_ += 0x9E3779B97F4A7C15u);
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9u;
    z = (z ^ (z >> 27)) * 0x94D049BB133111EBu;
    return z ^ (z >> 31);
  }
  // lo <= value <= hi, by remainder (the bias is below 2^-50 for the small ranges used here).
  int64_t in_range(int64_t lo, int64_t hi) {
    return lo + static_cast<int64_t>(next() % static_cast<uint64_t>(hi - lo + 1));
  }
  uint64_t state() const { return state_; }

 private:
  uint64_t state_;
};

// Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3").
inline std::array<uint32_t, 4> philox4x32(std::array<uint32_t, 4> counter, std::array<uint32_t, 2> key) {
  for (int round = 0; round < 10; ++round) {
    const uint64_t a = uint64_t{0xD2511F53u} * counter[0];
    const uint64_t b = uint64_t{0xCD9E8D57u} * counter[2];
    counter = {static_cast<uint32_t>(b >> 32) ^ counter[1] ^ key[0], static_cast<uint32_t>(b),
               static_cast<uint32_t>(a >> 32) ^ counter[3] ^ key[1], static_cast<uint32_t>(a)};
    key[0] += 0x9E3779B9u;
    key[1] += 0xBB67AE85u;
  }
  return counter;
}

// Coordinates of one sampled token.
struct DrawKey {
  uint64_t seed = 0;
  int64_t serial = 0;      // the prompt's: line index in generate, running number in training
  int32_t completion = 0;  // index in the group
  int32_t position = 0;    // index of the token in the completion
};

// Uniform in [0, 1), 53 bits.
inline double uniform_draw(const DrawKey& key) {
  const auto serial = static_cast<uint64_t>(key.serial);
  const auto bits = philox4x32({static_cast<uint32_t>(serial), static_cast<uint32_t>(serial >> 32),
                                static_cast<uint32_t>(key.completion), static_cast<uint32_t>(key.position)},
                               {static_cast<uint32_t>(key.seed), static_cast<uint32_t>(key.seed >> 32)});
  const uint64_t mantissa = ((uint64_t{bits[0]} << 32) | bits[1]) >> 11;
  return static_cast<double>(mantissa) * 0x1.0p-53;
}

}  // namespace temper
