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
                    .label = format("prompt {} (line {})", prompt.serial, prompt.line + 1),
                    .environment = [this, &prompt] {
                      auto environment = make_environment(options_.environment, options_.max_turns);
                      if (environment) environment->reset(prompt);
                      return environment;
                    }});
    outstanding_.emplace(id, Asked{std::move(prompt), purpose});
  }
}

std::optional<RolloutGroup> InlineRolloutSource::next_group(std::chrono::steady_clock::time_point deadline) {
  while (true) {
    begin_scoring();
    if (scoring_ && (scoring_->ready() || engine_.idle())) {
      const Stopwatch clock;
      RolloutGroup group = scoring_->finish();
      scoring_.reset();
      scoring_s_ += clock.seconds();
      return group;
    }
    if (engine_.idle() || std::chrono::steady_clock::now() >= deadline) return std::nullopt;
    run_engine();
  }
}

void InlineRolloutSource::run_engine() {
  const Stopwatch clock;
  for (GenerationResult& result : engine_.step()) finished_.push_back(std::move(result));
  if (engine_.idle()) engine_.release();
  generation_s_ += clock.seconds();
}

// One group at a time: its deadline is not spent on waiting for those before it.
void InlineRolloutSource::begin_scoring() {
  if (scoring_ || finished_.empty()) return;
  const Stopwatch clock;
  RolloutGroup group = take(std::move(finished_.front()));
  finished_.pop_front();
  scoring_.emplace(rewards_, std::move(group), options_.reward_timeout_s);
  scoring_s_ += clock.seconds();
}

RolloutGroup InlineRolloutSource::take(GenerationResult result) {
  RolloutGroup group;
  auto asked = outstanding_.extract(result.id);
  group.prompt = std::move(asked.mapped().prompt);
  group.purpose = asked.mapped().purpose;
  group.completions = std::move(result.completions);
  return group;
}

}  // namespace temper
