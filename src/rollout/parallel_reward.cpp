#include "rollout/parallel_reward.h"

#include <algorithm>
#include <atomic>

namespace temper {
namespace {

constexpr auto kLongestMargin = std::chrono::milliseconds(250);

// A group on its way: the last completion that is scored answers.
struct Scoring {
  std::shared_ptr<const RolloutGroup> group;
  std::vector<RewardOutcome> outcomes;  // one a completion, each written by one thread
  std::atomic<size_t> num_left;
  std::promise<std::vector<RewardOutcome>> answer;
};

}  // namespace

ParallelReward::ParallelReward(std::string name, int num_at_once)
    : name_(std::move(name)), pool_(std::make_unique<c10::ThreadPool>(num_at_once)) {}

std::future<std::vector<RewardOutcome>> ParallelReward::score(std::shared_ptr<const RolloutGroup> group,
                                                              Deadline deadline) {
  auto scoring = std::make_shared<Scoring>();
  const size_t num_completions = group->completions.size();
  scoring->group = std::move(group);
  scoring->outcomes.resize(num_completions);
  scoring->num_left = num_completions;
  std::future<std::vector<RewardOutcome>> future = scoring->answer.get_future();
  if (num_completions == 0) scoring->answer.set_value({});
  const Deadline::duration margin =
      std::min<Deadline::duration>(kLongestMargin, (deadline - std::chrono::steady_clock::now()) / 10);
  for (size_t i = 0; i < num_completions; ++i) {
    pool_->run([this, scoring, i, deadline = deadline - margin] {
      RewardOutcome& outcome = scoring->outcomes[i];
      try {
        if (std::chrono::steady_clock::now() >= deadline) throw std::runtime_error("was not begun before the deadline");
        outcome.value = score_one(scoring->group->prompt, scoring->group->completions[i], deadline);
      } catch (const std::exception& error) {
        outcome.error = error.what();
      }
      if (scoring->num_left.fetch_sub(1) == 1) scoring->answer.set_value(std::move(scoring->outcomes));
    });
  }
  return future;
}

}  // namespace temper
