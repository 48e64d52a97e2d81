// Advantage estimators, one row each: scores in, one number a token out. Called by Algorithm::advantages on the CPU in
// f64. To add an estimator: its enumerator, its file, its row in advantage.cpp.
#pragma once
#include <vector>

#include "algos/scores.h"
#include "algos/settings.h"

namespace temper {

struct EstimatorInput {
  const AlgoSection& settings;
  const Scores& scores;
  std::vector<double> rewards;           // [B, K] of each reward function; empty unless given so
  std::vector<double> reward_weights;    // [K]
  std::vector<double> baseline_rewards;  // [G]
  std::vector<double> old_values;        // [N]
};

struct EstimatorOutput {
  std::vector<double> advantages;  // [N] 0 where m = 0
  std::vector<double> returns;     // [N], or empty
};

struct EstimatorRow {
  AdvEstimator id;
  EstimatorOutput (*compute)(const EstimatorInput&);
};

const EstimatorRow& estimator_row(AdvEstimator id);

// One number a completion, spread over its counted tokens.
std::vector<double> spread_over_tokens(const Scores& scores, const std::vector<double>& per_completion);

EstimatorOutput grpo_advantages(const EstimatorInput& in);
EstimatorOutput rloo_advantages(const EstimatorInput& in);
EstimatorOutput reinforce_plus_plus_baseline_advantages(const EstimatorInput& in);
EstimatorOutput opo_advantages(const EstimatorInput& in);
EstimatorOutput gpg_advantages(const EstimatorInput& in);
EstimatorOutput grpo_passk_advantages(const EstimatorInput& in);
EstimatorOutput gdpo_advantages(const EstimatorInput& in);
EstimatorOutput reinforce_plus_plus_advantages(const EstimatorInput& in);
EstimatorOutput remax_advantages(const EstimatorInput& in);
EstimatorOutput gae_advantages(const EstimatorInput& in);
EstimatorOutput no_advantages(const EstimatorInput& in);

// A <- m * (A - mean) / sqrt(variance + 1e-8) over all counted tokens, where there are two or more.
void whiten(std::vector<double>& advantages, const Scores& scores);

// A_t += m * sum_{u >= t} discount^(u - t) * x_u with x = -distill_coef * m * (old - teacher). Returns the mean of
// old - teacher over the counted tokens.
double add_distillation(std::vector<double>& advantages, const Scores& scores, const std::vector<double>& old_logprobs,
                        const std::vector<double>& teacher_logprobs, const AlgoSection& settings);

}  // namespace temper
