#include "trainer/step_batch.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <numeric>

#include "core/error.h"

namespace temper {
namespace {

// One number a token of every sequence, [N] f64.
template <class Value>
at::Tensor per_token(const StepBatch& batch, Value value) {
  std::vector<double> numbers;
  numbers.reserve(static_cast<size_t>(batch.num_completion_tokens));
  for (const auto& sequence : batch.sequences) {
    const Completion& completion = batch.groups[sequence.group].completions[sequence.index];
    for (size_t t = 0; t < completion.token_ids.size(); ++t) numbers.push_back(value(completion, t));
  }
  return at::tensor(numbers, at::kDouble);
}

}  // namespace

std::vector<int64_t> StepBatch::all_completions() const {
  std::vector<int64_t> all(sequences.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

StepBatch build_step_batch(std::vector<RolloutGroup> groups, const std::vector<double>& reward_weights) {
  StepBatch batch;
  batch.groups = std::move(groups);
  std::sort(batch.groups.begin(), batch.groups.end(),
            [](const RolloutGroup& a, const RolloutGroup& b) { return a.prompt.serial < b.prompt.serial; });
  std::vector<double> rewards, baselines, margins;  // [B, K], [G], [G]
  bool has_behavior = true;
  for (size_t g = 0; g < batch.groups.size(); ++g) {
    const RolloutGroup& group = batch.groups[g];
    int64_t size = 0;
    for (size_t i = 0; i < group.completions.size(); ++i) {
      const Completion& completion = group.completions[i];
      if (!completion.error.empty() || completion.token_ids.empty()) {
        ++batch.num_failed;
        continue;
      }
      batch.sequences.push_back(
          {&group.prompt.token_ids, &completion.token_ids, static_cast<int64_t>(g), static_cast<int64_t>(i)});
      batch.loss.lengths.push_back(static_cast<int64_t>(completion.token_ids.size()));
      batch.loss.truncated.push_back(completion.finish_reason == FinishReason::kLength);
      batch.num_completion_tokens += static_cast<int64_t>(completion.token_ids.size());
      has_behavior = has_behavior && !completion.behavior_logprobs.empty();
      TEMPER_CHECK(reward_weights.empty() || completion.rewards.size() == reward_weights.size(),
                   "{} rewards, {} weights", completion.rewards.size(), reward_weights.size());
      rewards.insert(rewards.end(), completion.rewards.begin(), completion.rewards.end());
      ++size;
    }
    if (size == 0) {
      ++batch.num_groups_failed;
      continue;
    }
    batch.loss.group_sizes.push_back(size);
    baselines.push_back(group.baseline_reward.value_or(std::nan("")));
    margins.push_back(group.margin);
    batch.num_prompt_tokens += static_cast<int64_t>(group.prompt.token_ids.size());
  }
  batch.loss.mask =
      per_token(batch, [](const Completion& c, size_t t) { return c.mask.empty() ? 1.0 : c.mask[t]; }).to(at::kBool);
  if (has_behavior && !batch.sequences.empty())
    batch.loss.behavior_logprobs =
        per_token(batch, [](const Completion& c, size_t t) { return double{c.behavior_logprobs[t]}; });
  if (!reward_weights.empty()) {
    const auto count = static_cast<int64_t>(batch.sequences.size()),
               kinds = static_cast<int64_t>(reward_weights.size());
    batch.loss.rewards = at::tensor(rewards, at::kDouble).view({count, kinds});
  }
  const auto known = [](double baseline) { return !std::isnan(baseline); };
  if (!baselines.empty() && std::all_of(baselines.begin(), baselines.end(), known))
    batch.loss.baseline_rewards = at::tensor(baselines, at::kDouble);
  if (std::any_of(margins.begin(), margins.end(), [](double margin) { return margin != 0; }))
    batch.loss.margins = at::tensor(margins, at::kDouble);
  return batch;
}

}  // namespace temper
