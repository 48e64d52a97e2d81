#include "trainer/prompt_feed.h"

#include <algorithm>

#include "core/error.h"

namespace temper {
namespace {

// The hub gave it up: it has left the hub's count already.
bool was_given_up(const RolloutGroup& group) {
  return std::all_of(group.completions.begin(), group.completions.end(),
                     [](const Completion& c) { return !c.error.empty() && c.token_ids.empty(); });
}

}  // namespace

PromptFeed::PromptFeed(HubSource& source, PromptOf prompt_of, const FeedOptions& options, int64_t cursor,
                       const std::vector<int64_t>& unended)
    : source_(source), prompt_of_(std::move(prompt_of)), options_(options), cursor_(cursor) {
  ask(unended);
}

void PromptFeed::ask(std::vector<int64_t> serials) {
  std::vector<Prompt> prompts;
  for (const int64_t serial : serials) {
    asked_.insert(serial);
    prompts.push_back(prompt_of_(serial));
    prompts.back().serial = serial;
  }
  SamplingParams sampling = options_.sampling;
  source_.request(prompts, options_.num_completions, sampling, RolloutPurpose::kTrain);
  if (!options_.with_baseline) return;
  sampling.temperature = 0;
  source_.request(std::move(prompts), 1, sampling, RolloutPurpose::kBaseline);
}

std::vector<RolloutGroup> PromptFeed::take(int64_t count) {
  if (mid_step_) source_.filtered(count - num_given_up_);
  mid_step_ = true;
  // Off-policy one more step's prompts wait in the hub, so that workers need not wait for this function.
  const int64_t ahead = options_.max_staleness == 0 ? 0 : options_.max_staleness + 1;
  std::vector<int64_t> serials;
  while (static_cast<int64_t>(asked_.size() + serials.size()) < count + ahead * options_.groups_per_step)
    serials.push_back(cursor_++);
  ask(std::move(serials));

  std::vector<RolloutGroup> groups;
  num_given_up_ = 0;
  const int64_t baselines = options_.with_baseline ? count : 0;
  for (int64_t left = count + baselines; left > 0; --left) {
    RolloutGroup group = next_group();
    if (group.purpose == RolloutPurpose::kTrain) {
      taken_.push_back(group.prompt.serial);
      const bool was_asked = asked_.erase(group.prompt.serial) == 1;
      TEMPER_CHECK(was_asked, "prompt {} ended twice", group.prompt.serial);
      num_given_up_ += was_given_up(group);
    }
    groups.push_back(std::move(group));
  }
  return groups;
}

RolloutGroup PromptFeed::next_group() try {
  auto group = source_.next_group(std::chrono::steady_clock::now() + std::chrono::hours(24 * 365));
  TEMPER_CHECK(group.has_value(), "no group came");
  return std::move(*group);
} catch (const StoppedWaiting&) {
  asked_.insert(taken_.begin(), taken_.end());
  // On-policy nothing was asked for beyond the step: it is asked for anew, as if it had not begun.
  if (options_.max_staleness == 0 && !asked_.empty()) {
    cursor_ = *asked_.begin();
    asked_.clear();
  }
  throw;
}

void PromptFeed::step_done() {
  mid_step_ = false;
  taken_.clear();
  num_given_up_ = 0;
}

}  // namespace temper
