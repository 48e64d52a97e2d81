#include "algos/advantage.h"

#include <cmath>

#include "core/error.h"

namespace temper {

const EstimatorRow& estimator_row(AdvEstimator id) {
  static const EstimatorRow kRows[] = {
      {AdvEstimator::kGrpo, grpo_advantages},
      {AdvEstimator::kRloo, rloo_advantages},
      {AdvEstimator::kReinforcePlusPlus, reinforce_plus_plus_advantages},
      {AdvEstimator::kReinforcePlusPlusBaseline, reinforce_plus_plus_baseline_advantages},
      {AdvEstimator::kRemax, remax_advantages},
      {AdvEstimator::kOpo, opo_advantages},
      {AdvEstimator::kGpg, gpg_advantages},
      {AdvEstimator::kGrpoPassk, grpo_passk_advantages},
      {AdvEstimator::kGdpo, gdpo_advantages},
      {AdvEstimator::kGae, gae_advantages},
      {AdvEstimator::kNone, no_advantages},
  };
  for (const EstimatorRow& row : kRows)
    if (row.id == id) return row;
  throw InvariantError("an adv_estimator without a row");
}

std::vector<double> spread_over_tokens(const Scores& scores, const std::vector<double>& per_completion) {
  std::vector<double> result(scores.counted.size(), 0);
  for (size_t i = 0; i < per_completion.size(); ++i)
    for (int64_t t = scores.offsets[i]; t < scores.offsets[i + 1]; ++t)
      if (scores.counted[t]) result[t] = per_completion[i];
  return result;
}

EstimatorOutput no_advantages(const EstimatorInput& in) {
  return {std::vector<double>(in.scores.counted.size(), 0), {}};
}

// Unbiased variance over tokens, as verl's masked_whiten and TRL's; OpenRLHF divides by n.
void whiten(std::vector<double>& advantages, const Scores& scores) {
  if (scores.total_counted < 2) return;
  double sum = 0, squares = 0;
  for (size_t t = 0; t < advantages.size(); ++t)
    if (scores.counted[t]) sum += advantages[t];
  const double mean = sum / scores.total_counted;
  for (size_t t = 0; t < advantages.size(); ++t)
    if (scores.counted[t]) squares += (advantages[t] - mean) * (advantages[t] - mean);
  const double scale = 1 / std::sqrt(squares / (scores.total_counted - 1) + 1e-8);
  for (size_t t = 0; t < advantages.size(); ++t) advantages[t] = scores.counted[t] ? (advantages[t] - mean) * scale : 0;
}

// On-policy distillation with the reverse KL as a token's reward (Lu, Thinking Machines Lab 2025,
// https://thinkingmachines.ai/blog/on-policy-distillation/; tinker-cookbook's incorporate_kl_penalty, which compares
// the sampler's log-probability where this compares the proximal policy's).
double add_distillation(std::vector<double>& advantages, const Scores& scores, const std::vector<double>& old_logprobs,
                        const std::vector<double>& teacher_logprobs, const AlgoSection& settings) {
  double difference = 0;
  for (size_t i = 0; i + 1 < scores.offsets.size(); ++i) {
    double following = 0;  // sum_{u >= t} discount^(u - t) * x_u; masked tokens take a power too
    for (int64_t t = scores.offsets[i + 1] - 1; t >= scores.offsets[i]; --t) {
      following *= settings.distill_discount;
      if (!scores.counted[t]) continue;
      difference += old_logprobs[t] - teacher_logprobs[t];
      following -= settings.distill_coef * (old_logprobs[t] - teacher_logprobs[t]);
      advantages[t] += following;
    }
  }
  return scores.total_counted > 0 ? difference / scores.total_counted : 0;
}

}  // namespace temper
