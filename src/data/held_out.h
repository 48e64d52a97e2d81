// The split of prompts into training and held out, by a hash of the text alone: the same in every file, run and
// machine.
#pragma once
#include <string_view>

#include "core/hash.h"

namespace temper {

inline bool is_held_out(std::string_view prompt, double held_out_share) {
  return static_cast<double>(xxh3_64(prompt) >> 11) * 0x1.0p-53 < held_out_share;
}

}  // namespace temper
