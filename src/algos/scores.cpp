#include "algos/scores.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "algos/kl.h"
#include "algos/statistics.h"
#include "core/error.h"

namespace temper {
namespace {

// r_i = reward, or sum_k weight_k * rewards_k, or sum_t mask * token_rewards.
std::vector<double> raw_rewards(const LossBatch& batch, const std::vector<int64_t>& offsets,
                                const AlgoContext& context) {
  if (batch.reward.defined()) return to_doubles(batch.reward);
  const int64_t num = batch.num_completions();
  std::vector<double> result(num, 0);
  if (batch.rewards.defined()) {
    const int64_t num_functions = batch.rewards.size(1);
    TEMPER_CHECK(context.reward_weights.empty() || static_cast<int64_t>(context.reward_weights.size()) == num_functions,
                 "{} reward weights for {} rewards", context.reward_weights.size(), num_functions);
    const std::vector<double> rewards = to_doubles(batch.rewards);
    for (int64_t i = 0; i < num; ++i)
      for (int64_t k = 0; k < num_functions; ++k)
        result[i] += (context.reward_weights.empty() ? 1 : context.reward_weights[k]) * rewards[i * num_functions + k];
  } else if (batch.token_rewards.defined()) {
    const std::vector<double> rewards = to_doubles(batch.token_rewards);
    const std::vector<double> mask = to_doubles(batch.mask);
    for (int64_t i = 0; i < num; ++i)
      for (int64_t t = offsets[i]; t < offsets[i + 1]; ++t)
        if (mask[t] != 0) result[i] += rewards[t];
  }
  return result;
}

// Soft overlong punishment: DAPO (Yu et al. 2025, https://arxiv.org/abs/2503.14476), equation 13.
double overlong_penalty(int64_t length, const AlgoSection& settings, const AlgoContext& context) {
  if (settings.overlong_buffer.len == 0) return 0;
  TEMPER_CHECK(context.max_completion_length > 0, "overlong_buffer without max_completion_length");
  const auto len = static_cast<double>(settings.overlong_buffer.len);
  const double exceed = static_cast<double>(length) - (static_cast<double>(context.max_completion_length) - len);
  return std::min(0.0, -exceed / len * settings.overlong_buffer.penalty_factor);
}

}  // namespace

std::vector<double> to_doubles(const at::Tensor& tensor) {
  if (!tensor.defined()) return {};
  const at::Tensor flat = tensor.to(at::kCPU, at::kDouble).contiguous();
  const double* data = flat.const_data_ptr<double>();
  return {data, data + flat.numel()};
}

Scores compute_scores(const LossBatch& batch, const AlgoSection& settings, const AlgoContext& context) {
  const int64_t num = batch.num_completions();
  Scores scores;
  scores.offsets = batch.offsets();
  scores.has_rewards = batch.reward.defined() || batch.rewards.defined() || batch.token_rewards.defined();
  scores.stays.assign(num, 1);
  const std::vector<double> raw = raw_rewards(batch, scores.offsets, context);

  int64_t begin = 0;
  for (const int64_t size : batch.group_sizes) {
    scores.groups.push_back({begin, begin + size});
    const std::vector<double> of_group(raw.begin() + begin, raw.begin() + begin + size);
    if (settings.filter_groups && size >= 2 && identical(of_group)) {
      std::fill_n(scores.stays.begin() + begin, size, uint8_t{0});
      ++scores.groups_filtered;
    }
    begin += size;
  }

  const std::vector<double> mask = to_doubles(batch.mask);
  const std::vector<double> token_rewards = to_doubles(batch.token_rewards);
  scores.counted.assign(mask.size(), 0);
  scores.token_reward.assign(mask.size(), 0);
  scores.num_counted.assign(num, 0);
  scores.last.assign(num, -1);
  scores.reward.assign(num, 0);
  for (int64_t i = 0; i < num; ++i) {
    const bool hidden =
        !scores.stays[i] || (settings.mask_truncated_completions && !batch.truncated.empty() && batch.truncated[i]);
    for (int64_t t = scores.offsets[i]; t < scores.offsets[i + 1]; ++t) {
      if (hidden || mask[t] == 0) continue;
      scores.counted[t] = 1;
      scores.last[i] = t;
      ++scores.num_counted[i];
      if (!token_rewards.empty()) scores.token_reward[t] = token_rewards[t];
    }
    scores.total_counted += static_cast<double>(scores.num_counted[i]);
    scores.total_stays += scores.stays[i];
    if (!scores.has_rewards) continue;
    const double penalty = overlong_penalty(batch.lengths[i], settings, context);
    scores.reward[i] = raw[i] + penalty;
    if (scores.last[i] >= 0) scores.token_reward[scores.last[i]] += token_rewards.empty() ? scores.reward[i] : penalty;
  }
  scores.score = scores.reward;
  return scores;
}

std::vector<double> subtract_kl(Scores& scores, const LossBatch& batch, const AlgoSection& settings, double kl_coef) {
  const std::vector<double> old = to_doubles(batch.old_logprobs), ref = to_doubles(batch.ref_logprobs);
  std::vector<double> d(old.size(), 0);
  for (size_t t = 0; t < d.size(); ++t)
    if (scores.counted[t]) d[t] = old[t] - ref[t];
  std::vector<double> k = to_doubles(kl_estimate(at::tensor(d, at::kDouble), settings.kl_estimator, settings.kl_clamp));
  for (size_t i = 0; i + 1 < scores.offsets.size(); ++i)
    for (int64_t t = scores.offsets[i]; t < scores.offsets[i + 1]; ++t) {
      if (!scores.counted[t] || kl_coef == 0) continue;
      scores.token_reward[t] -= kl_coef * k[t];
      scores.score[i] -= kl_coef * k[t];
    }
  return k;
}

}  // namespace temper
