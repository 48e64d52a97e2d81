// Metrics of the whole batch that are known once its advantages are: rewards, groups, KL in the reward, the critic's
// fit.
#pragma once
#include <vector>

#include "algos/algorithm.h"
#include "algos/scores.h"

namespace temper {

// reward, reward_std, rewards/NAME/*, frac_reward_zero_std over all completions; training/groups_filtered.
void add_reward_metrics(AdvantageReport& report, const Scores& scores, const LossBatch& batch,
                        const AlgoSection& settings, const AlgoContext& context);
// k: [N], 0 outside m. Sets report.kl to the mean over completions of their mean k.
void add_kl_metrics(AdvantageReport& report, const Scores& scores, const std::vector<double>& k);
// 1 - var(R - V_old) / (var(R) + 1e-5) over m, where there are two tokens.
void add_explained_variance(AdvantageReport& report, const Scores& scores, const std::vector<double>& returns,
                            const std::vector<double>& old_values);

}  // namespace temper
