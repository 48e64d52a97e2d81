// Estimators that sum the rewards of a completion's tokens from the last back: G_t = R_t + gamma * G_next over counted
// tokens, 0 after the last.
#include "algos/advantage.h"
#include "core/error.h"

namespace temper {
namespace {

std::vector<double> discounted_returns(const Scores& scores, double gamma) {
  std::vector<double> returns(scores.counted.size(), 0);
  for (size_t i = 0; i + 1 < scores.offsets.size(); ++i) {
    double following = 0;
    for (int64_t t = scores.offsets[i + 1] - 1; t >= scores.offsets[i]; --t)
      if (scores.counted[t]) returns[t] = following = scores.token_reward[t] + gamma * following;
  }
  return returns;
}

}  // namespace

// REINFORCE++: A = G, whitened over the batch. Hu et al. 2025, https://arxiv.org/abs/2501.03262.
EstimatorOutput reinforce_plus_plus_advantages(const EstimatorInput& in) {
  const std::vector<double> returns = discounted_returns(in.scores, in.settings.gamma);
  return {returns, returns};
}

// ReMax: A = G - reward of the greedy completion, gamma 1. Li et al. 2023, https://arxiv.org/abs/2310.10505.
EstimatorOutput remax_advantages(const EstimatorInput& in) {
  const Scores& scores = in.scores;
  TEMPER_CHECK(in.baseline_rewards.size() == scores.groups.size(), "remax needs a baseline reward a group");
  EstimatorOutput out{discounted_returns(scores, 1), {}};
  out.returns = out.advantages;
  for (size_t g = 0; g < scores.groups.size(); ++g)
    for (int64_t t = scores.offsets[scores.groups[g].begin]; t < scores.offsets[scores.groups[g].end]; ++t)
      if (scores.counted[t]) out.advantages[t] -= in.baseline_rewards[g];
  return out;
}

}  // namespace temper
