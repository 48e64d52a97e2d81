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

// What algo.rollout_is is where nothing sets it: none, unless rollouts compute with other weights than training, by
// rollout.dtype or by async.max_staleness; then token, or sequence for a loss with one ratio a sequence.
RolloutIs correction_of_mismatch(const StageConfig& stage);

// Combinations that cannot work, one message each with its fix.
std::vector<std::string> algo_conflicts(const AlgoSection& algo);

}  // namespace temper
