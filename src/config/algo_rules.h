// What holds among the keys of [algo]: which of them the settings use, and which combinations cannot work. Internal to
// config; the formulas are in algos.
#pragma once
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace temper {

// Whether `key` ("algo.clip_ratio_c") changes anything, given the others. True for keys outside [algo].
bool is_used(std::string_view key, const AlgoSection& algo);

// Combinations that cannot work, one message each with its fix.
std::vector<std::string> algo_conflicts(const AlgoSection& algo);

}  // namespace temper
