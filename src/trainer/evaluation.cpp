#include "trainer/evaluation.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <numbers>

#include "core/error.h"
#include "core/eval_metrics.h"

namespace temper {
namespace {

constexpr uint64_t kEvalSeed = 0x6576616c;  // "eval": keeps the draws apart from training's

Verdict verdict(const Completion& completion) {
  if (!completion.error.empty() || completion.rewards.empty()) return Verdict::kFailed;
  return completion.rewards.front() >= 1.0 - 1e-9 ? Verdict::kCorrect : Verdict::kWrong;
}

std::vector<RolloutGroup> generate_set(RolloutSource& source, const EvalSet& set, int num_completions,
                                       const SamplingParams& sampling) {
  std::vector<Prompt> prompts = set.prompts;
  for (size_t i = 0; i < prompts.size(); ++i) prompts[i].serial = static_cast<int64_t>(i);
  source.request(std::move(prompts), num_completions, sampling, RolloutPurpose::kEval);
  std::vector<RolloutGroup> groups;
  while (groups.size() < set.prompts.size()) {
    auto group = source.next_group(std::chrono::steady_clock::now() + std::chrono::hours(24));
    TEMPER_CHECK(group.has_value(), "{} of {} evaluation groups came", groups.size(), set.prompts.size());
    groups.push_back(std::move(*group));
  }
  std::sort(groups.begin(), groups.end(),
            [](const RolloutGroup& a, const RolloutGroup& b) { return a.prompt.serial < b.prompt.serial; });
  return groups;
}

}  // namespace

std::vector<std::vector<RolloutGroup>> generate_eval(RolloutSource& source, const std::vector<EvalSet>& sets,
                                                     const EvalSection& eval, const SamplingParams& training) {
  SamplingParams sampling = training;
  sampling.temperature = eval.temperature;
  sampling.seed ^= kEvalSeed;
  std::vector<std::vector<RolloutGroup>> results;
  for (const EvalSet& set : sets)
    results.push_back(generate_set(source, set, static_cast<int>(eval.num_completions), sampling));
  return results;
}

void add_eval_metrics(const EvalSet& set, const std::vector<RolloutGroup>& groups, int64_t num_completions,
                      MetricRecord& record) {
  std::vector<std::vector<Verdict>> problems;
  for (const RolloutGroup& group : groups) {
    problems.emplace_back();
    for (const Completion& completion : group.completions) problems.back().push_back(verdict(completion));
  }
  const EvalMetrics metrics = eval_metrics(problems, num_completions);
  const std::string prefix = "eval/" + set.name + "/";
  record.set(prefix + "accuracy", metrics.accuracy);
  if (num_completions > 1) {
    record.set(prefix + format("avg@{}", num_completions), metrics.avg_at_k);
    record.set(prefix + format("pass@{}", num_completions), metrics.pass_at_k);
  }
  if (metrics.num_failed > 0) record.set(prefix + "failed", static_cast<double>(metrics.num_failed));
}

double bits_per_character(const TrainerModel& policy, const EvalText& text, int64_t window_tokens, const Ranks& ranks) {
  TEMPER_CHECK(text.token_ids.size() > 1 && text.num_characters > 0, "a text of {} tokens", text.token_ids.size());
  // Each window starts with the last token of the one before it, so every token but the first is predicted once.
  std::vector<RolloutGroup> windows;
  for (size_t begin = 0; begin + 1 < text.token_ids.size(); begin += static_cast<size_t>(window_tokens)) {
    const size_t end = std::min(text.token_ids.size(), begin + static_cast<size_t>(window_tokens) + 1);
    RolloutGroup window;
    window.prompt.serial = static_cast<int64_t>(windows.size());
    window.prompt.token_ids = {text.token_ids[begin]};
    window.completions.resize(1);
    window.completions[0].token_ids.assign(text.token_ids.begin() + static_cast<int64_t>(begin) + 1,
                                           text.token_ids.begin() + static_cast<int64_t>(end));
    windows.push_back(std::move(window));
  }
  const StepBatch batch = build_step_batch(std::move(windows), {});
  const double nats =
      -completion_logprobs(policy, batch, batch.all_completions(), window_tokens, 1.0, ranks).sum().item<double>();
  return nats / std::numbers::ln2 / static_cast<double>(text.num_characters);
}

}  // namespace temper
