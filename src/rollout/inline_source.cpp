#include "rollout/inline_source.h"

#include "core/format.h"

namespace temper {

void InlineRolloutSource::request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                                  RolloutPurpose purpose) {
  for (Prompt& prompt : prompts) {
    const int64_t id = next_id_++;
    engine_.submit({.id = id,
                    .prompt_token_ids = prompt.token_ids,
                    .num_completions = num_completions,
                    .sampling = sampling,
                    .serial = prompt.serial,
                    .label = format("prompt {} (line {})", prompt.serial, prompt.line + 1)});
    outstanding_.emplace(id, Asked{std::move(prompt), purpose});
  }
}

std::optional<RolloutGroup> InlineRolloutSource::next_group(std::chrono::steady_clock::time_point deadline) {
  const Stopwatch generation;
  while (finished_.empty() && !engine_.idle() && std::chrono::steady_clock::now() < deadline)
    for (GenerationResult& result : engine_.step()) finished_.push_back(std::move(result));
  if (engine_.idle()) engine_.release();
  generation_s_ += generation.seconds();
  if (finished_.empty()) return std::nullopt;

  RolloutGroup group;
  auto asked = outstanding_.extract(finished_.front().id);
  group.prompt = std::move(asked.mapped().prompt);
  group.purpose = asked.mapped().purpose;
  group.completions = std::move(finished_.front().completions);
  finished_.pop_front();
  const Stopwatch scoring;
  scorer_(group);
  scoring_s_ += scoring.seconds();
  return group;
}

}  // namespace temper
