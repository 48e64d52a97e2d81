// What the losses take from the configuration: [algo] as it is (config/config.h), a little of its neighbours, and which
// arrays a setting needs. Called by the trainer, to know what to compute, and by `temper loss`, to know what to demand.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "config/config.h"

namespace temper {

struct AlgoContext {
  int64_t max_completion_length = 0;      // [rollout]; 0 = not known
  std::vector<std::string> reward_names;  // [K] [reward] functions
  std::vector<double> reward_weights;     // [K]; empty = all 1
};

// An array (named as in the fixture of `temper loss`) and the setting that needs it, as "algo.kl_coef = 0.1".
struct ArrayNeed {
  std::string array;
  std::string because;
};

std::vector<ArrayNeed> needed_arrays(const AlgoSection& settings);
bool needs_array(const AlgoSection& settings, std::string_view array);

// True where the proximal policy's log-probabilities must be known before the advantages. If not, a single pass over
// the batch may leave old_logprobs out: the loss then takes the policy's own, held constant.
bool needs_old_before_loss(const AlgoSection& settings);

inline bool kl_in_reward(const AlgoSection& settings) {
  return settings.kl_coef > 0 && settings.kl_placement == KlPlacement::kReward;
}
// A loss on pairs of completions, which has no aggregation and no KL term: dpo, ipo, reward_model.
inline bool is_preference_loss(PolicyLoss loss) {
  return loss == PolicyLoss::kDpo || loss == PolicyLoss::kIpo || loss == PolicyLoss::kRewardModel;
}

// Throws ConfigError where the settings need a neighbour that is not there. What excludes each other within [algo] was
// refused when it was read.
void check_context(const AlgoSection& settings, const AlgoContext& context);

}  // namespace temper
