// Generalised advantage estimation. Schulman et al. 2015, https://arxiv.org/abs/1506.02438.
//   g_t = R_t + gamma V_next - V_t + gamma lam g_next,  A_t = g_t,  return_t = g_t + V_t
// Masked tokens (tool output) are stepped over, as in verl; gae_skip_masked = false takes a step with R = V = 0, as
// TRL.
#include "algos/advantage.h"
#include "core/error.h"

namespace temper {

EstimatorOutput gae_advantages(const EstimatorInput& in) {
  const Scores& scores = in.scores;
  const std::vector<double>& values = in.old_values;
  const double gamma = in.settings.gamma, lam = in.settings.lam;
  TEMPER_CHECK(values.size() == scores.counted.size(), "gae needs old_values");
  EstimatorOutput out{std::vector<double>(values.size(), 0), std::vector<double>(values.size(), 0)};
  for (size_t i = 0; i + 1 < scores.offsets.size(); ++i) {
    double next_value = 0, g = 0;
    for (int64_t t = scores.offsets[i + 1] - 1; t >= scores.offsets[i]; --t) {
      if (scores.counted[t]) {
        g = scores.token_reward[t] + gamma * next_value - values[t] + gamma * lam * g;
        out.advantages[t] = g;
        out.returns[t] = g + values[t];
        next_value = values[t];
      } else if (!in.settings.gae_skip_masked) {
        g = gamma * next_value + gamma * lam * g;
        next_value = 0;
      }
    }
  }
  return out;
}

}  // namespace temper
