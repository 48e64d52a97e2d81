#include "algos/reward_metrics.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "algos/statistics.h"
#include "core/format.h"

namespace temper {

void add_reward_metrics(AdvantageReport& report, const Scores& scores, const LossBatch& batch,
                        const AlgoSection& settings, const AlgoContext& context) {
  if (settings.filter_groups)
    report.metrics.emplace_back("training/groups_filtered", static_cast<double>(scores.groups_filtered));
  if (!scores.has_rewards) return;
  report.metrics.emplace_back("reward", mean_of(scores.reward));
  report.metrics.emplace_back("reward_std", std_of(scores.reward));
  if (batch.rewards.defined()) {
    const int64_t num = batch.rewards.size(0), num_functions = batch.rewards.size(1);
    const std::vector<double> rewards = to_doubles(batch.rewards);
    for (int64_t k = 0; k < num_functions; ++k) {
      std::vector<double> column(num);
      for (int64_t i = 0; i < num; ++i) column[i] = rewards[i * num_functions + k];
      const std::string name = context.reward_names.empty() ? std::to_string(k) : context.reward_names[k];
      report.metrics.emplace_back(format("rewards/{}/mean", name), mean_of(column));
      report.metrics.emplace_back(format("rewards/{}/std", name), std_of(column));
    }
  }
  double without_spread = 0;
  for (const GroupRange& group : scores.groups)
    without_spread += identical({scores.reward.begin() + group.begin, scores.reward.begin() + group.end});
  report.metrics.emplace_back("frac_reward_zero_std",
                              without_spread / std::max(1.0, static_cast<double>(scores.groups.size())));
}

void add_kl_metrics(AdvantageReport& report, const Scores& scores, const std::vector<double>& k) {
  double over_tokens = 0, over_completions = 0;
  for (size_t i = 0; i + 1 < scores.offsets.size(); ++i) {
    double sum = 0;
    for (int64_t t = scores.offsets[i]; t < scores.offsets[i + 1]; ++t)
      if (scores.counted[t]) sum += k[t];
    over_tokens += sum;
    over_completions += sum / std::max(1.0, static_cast<double>(scores.num_counted[i]));
  }
  report.metrics.emplace_back("kl", over_tokens / std::max(1.0, scores.total_counted));
  report.kl = over_completions / std::max(1.0, scores.total_stays);
}

void add_explained_variance(AdvantageReport& report, const Scores& scores, const std::vector<double>& returns,
                            const std::vector<double>& old_values) {
  if (scores.total_counted < 2) return;
  std::vector<double> counted_returns, errors;
  for (size_t t = 0; t < returns.size(); ++t) {
    if (!scores.counted[t]) continue;
    counted_returns.push_back(returns[t]);
    errors.push_back(returns[t] - old_values[t]);
  }
  report.metrics.emplace_back("explained_variance", 1 - variance_of(errors) / (variance_of(counted_returns) + 1e-5));
}

}  // namespace temper
