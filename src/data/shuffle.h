// The order in which training passes over a data set: a pure function from the running number to the line, a new
// permutation each pass. The whole state is {size, seed, running number}, so resuming needs no replay and any thread
// may ask.
#pragma once
#include <cstdint>

namespace temper {

class ShuffleOrder {
 public:
  // REQUIRES: size > 0. shuffle = false: the order of the file, pass after pass.
  ShuffleOrder(int64_t size, uint64_t seed, bool shuffle);
  int64_t line(int64_t serial) const;  // in [0, size)
  int64_t size() const { return size_; }

 private:
  int64_t size_;
  uint64_t seed_;
  bool shuffle_;
  int half_bits_;  // the permutation acts on numbers of 2 * half_bits_ bits
};

}  // namespace temper
