// Estimators that compare the completions of a group by one score each. Statistics run over the groups that stay; a
// group of two or more identical scores gets 0 exactly; a group of one has mean 0 and std 1 (as verl: its score stays;
// TRL: 0).
#include <algorithm>
#include <numeric>

#include "algos/advantage.h"
#include "algos/statistics.h"
#include "core/error.h"

namespace temper {
namespace {

struct Group {
  GroupRange range;
  std::vector<double> values;  // of its completions
};

// Calls visit(group, a + range.begin) for the groups that stay and have spread (or one completion); a is 0 elsewhere.
template <class Visit>
std::vector<double> for_each_group(const Scores& scores, const std::vector<double>& values, const Visit& visit) {
  std::vector<double> a(values.size(), 0);
  for (const GroupRange& range : scores.groups) {
    if (!scores.stays[range.begin]) continue;
    const Group group{range, {values.begin() + range.begin, values.begin() + range.end}};
    if (range.size() >= 2 && identical(group.values)) continue;
    visit(group, a.data() + range.begin);
  }
  return a;
}

double group_mean(const Group& group) { return group.range.size() == 1 ? 0 : mean_of(group.values); }

// D: what scale_rewards divides by.
class Scale {
 public:
  Scale(const EstimatorInput& in, const std::vector<double>& values) : settings_(in.settings) {
    std::vector<double> staying;
    for (size_t i = 0; i < values.size(); ++i)
      if (in.scores.stays[i]) staying.push_back(values[i]);
    batch_std_ = staying.size() < 2 ? 1 : std_of(staying);
  }
  double of(const Group& group) const {
    switch (settings_.scale_rewards) {
      case ScaleRewards::kNone:
        return 1;
      case ScaleRewards::kGroup:
        return (group.range.size() == 1 ? 1 : std_of(group.values)) + settings_.advantage_eps;
      case ScaleRewards::kBatch:
        return batch_std_ + settings_.advantage_eps;
    }
    throw InvariantError("unknown scale_rewards");
  }

 private:
  const AlgoSection& settings_;
  double batch_std_ = 1;
};

// (s - mean) / D
std::vector<double> normalised(const EstimatorInput& in, const std::vector<double>& values) {
  const Scale scale(in, values);
  return for_each_group(in.scores, values, [&](const Group& group, double* a) {
    const double mean = group_mean(group), divisor = scale.of(group);
    for (int64_t i = 0; i < group.range.size(); ++i) a[i] = (group.values[i] - mean) / divisor;
  });
}

}  // namespace

// GRPO: a = (s - mean) / (std + eps). Shao et al. 2024, https://arxiv.org/abs/2402.03300; eps 1e-4 as TRL (verl 1e-6).
// scale_rewards none is Dr. GRPO (Liu et al. 2025, https://arxiv.org/abs/2503.20783), batch the std over all
// completions (Liu et al. 2025, https://arxiv.org/abs/2508.08221).
EstimatorOutput grpo_advantages(const EstimatorInput& in) {
  return {spread_over_tokens(in.scores, normalised(in, in.scores.score)), {}};
}

// RLOO: a = (s - mean) * n / (n - 1), the score less the mean of the others. Ahmadian et al. 2024,
// https://arxiv.org/abs/2402.14740.
EstimatorOutput rloo_advantages(const EstimatorInput& in) {
  const auto a = for_each_group(in.scores, in.scores.score, [](const Group& group, double* out) {
    const auto n = static_cast<double>(group.range.size());
    const double mean = group_mean(group), factor = n > 1 ? n / (n - 1) : 1;
    for (int64_t i = 0; i < group.range.size(); ++i) out[i] = (group.values[i] - mean) * factor;
  });
  return {spread_over_tokens(in.scores, a), {}};
}

// REINFORCE++ with group baseline: a = s - mean, whitened over the batch. Hu et al. 2025,
// https://arxiv.org/abs/2501.03262.
EstimatorOutput reinforce_plus_plus_baseline_advantages(const EstimatorInput& in) {
  const auto a = for_each_group(in.scores, in.scores.score, [](const Group& group, double* out) {
    const double mean = group_mean(group);
    for (int64_t i = 0; i < group.range.size(); ++i) out[i] = group.values[i] - mean;
  });
  return {spread_over_tokens(in.scores, a), {}};
}

// OPO: a = s - sum(L s) / sum(L), the baseline of least variance. Hao et al. 2025, https://arxiv.org/abs/2505.23585.
EstimatorOutput opo_advantages(const EstimatorInput& in) {
  const auto a = for_each_group(in.scores, in.scores.score, [&](const Group& group, double* out) {
    double tokens = 0, weighted = 0;
    for (int64_t i = 0; i < group.range.size(); ++i) {
      const auto length = static_cast<double>(in.scores.num_counted[group.range.begin + i]);
      tokens += length;
      weighted += length * group.values[i];
    }
    const double baseline = group.range.size() == 1 || tokens == 0 ? 0 : weighted / tokens;
    for (int64_t i = 0; i < group.range.size(); ++i) out[i] = group.values[i] - baseline;
  });
  return {spread_over_tokens(in.scores, a), {}};
}

// GPG: a = (s - mean) * B / number of non-zero scores. Chu et al. 2025, https://arxiv.org/abs/2504.02546, as verl has
// it.
EstimatorOutput gpg_advantages(const EstimatorInput& in) {
  double non_zero = 0;
  for (size_t i = 0; i < in.scores.score.size(); ++i) non_zero += in.scores.stays[i] && in.scores.score[i] != 0;
  const double factor = in.scores.total_stays / std::max(1.0, non_zero);
  const auto a = for_each_group(in.scores, in.scores.score, [&](const Group& group, double* out) {
    const double mean = group_mean(group);
    for (int64_t i = 0; i < group.range.size(); ++i) out[i] = (group.values[i] - mean) * factor;
  });
  return {spread_over_tokens(in.scores, a), {}};
}

// Pass@k training: the best of a group gets (best - second) / D, the others 0. Verl's
// compute_grpo_passk_outcome_advantage, after Tang et al. 2025, https://arxiv.org/abs/2503.19595.
EstimatorOutput grpo_passk_advantages(const EstimatorInput& in) {
  const Scale scale(in, in.scores.score);
  const auto a = for_each_group(in.scores, in.scores.score, [&](const Group& group, double* out) {
    TEMPER_CHECK(group.range.size() >= 2, "grpo_passk with a group of one");
    std::vector<int64_t> order(group.values.size());
    std::iota(order.begin(), order.end(), 0);
    std::partial_sort(order.begin(), order.begin() + 2, order.end(), [&](int64_t x, int64_t y) {
      return group.values[x] != group.values[y] ? group.values[x] > group.values[y] : x < y;
    });
    out[order[0]] = (group.values[order[0]] - group.values[order[1]]) / scale.of(group);
  });
  return {spread_over_tokens(in.scores, a), {}};
}

// GDPO: a = sum_k weight_k * a^(k), each reward normalised alone as GRPO does, so that none drowns the others; whitened
// over tokens. Liu et al. 2026, https://arxiv.org/abs/2601.05242.
EstimatorOutput gdpo_advantages(const EstimatorInput& in) {
  const size_t num = in.scores.score.size(), num_functions = in.rewards.size() / std::max<size_t>(1, num);
  TEMPER_CHECK(num_functions > 0, "gdpo needs the rewards of each function");
  std::vector<double> a(num, 0);
  for (size_t k = 0; k < num_functions; ++k) {
    std::vector<double> values(num);
    for (size_t i = 0; i < num; ++i) values[i] = in.rewards[i * num_functions + k];
    const std::vector<double> of_reward = normalised(in, values);
    const double weight = in.reward_weights.empty() ? 1 : in.reward_weights[k];
    for (size_t i = 0; i < num; ++i) a[i] += weight * of_reward[i];
  }
  return {spread_over_tokens(in.scores, a), {}};
}

}  // namespace temper
