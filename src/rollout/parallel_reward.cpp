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
        {
          const std::lock_guard lock(mutex_);
          if (abandoned_) throw std::runtime_error("was abandoned");
        }
        outcome.value = score_one(scoring->group->prompt, scoring->group->completions[i], deadline);
      } catch (const std::exception& error) {
        outcome.error = error.what();
      }
      if (scoring->num_left.fetch_sub(1) == 1) scoring->answer.set_value(std::move(scoring->outcomes));
    });
  }
  return future;
}

void ParallelReward::abandon() {
  const std::lock_guard lock(mutex_);
  abandoned_ = true;
  for (ChildProcess* program : running_) program->interrupt();
}

ParallelReward::Running::Running(const ParallelReward& reward, ChildProcess& program)
    : reward_(reward), program_(program) {
  const std::lock_guard lock(reward_.mutex_);
  reward_.running_.insert(&program_);
  if (reward_.abandoned_) program_.interrupt();
}

ParallelReward::Running::~Running() {
  const std::lock_guard lock(reward_.mutex_);
  reward_.running_.erase(&program_);
}

}  // namespace temper
