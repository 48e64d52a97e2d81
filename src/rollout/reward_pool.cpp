#include "rollout/reward_pool.h"

#include <algorithm>
#include <cmath>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

using Outcomes = std::vector<RewardOutcome>;

std::future<Outcomes> begin_scoring(Reward& reward, const std::shared_ptr<const RolloutGroup>& group,
                                    Reward::Deadline deadline) {
  try {
    return reward.score(group, deadline);
  } catch (const std::logic_error&) {
    throw;  // a bug of ours
  } catch (const std::exception&) {
    std::promise<Outcomes> failed;
    failed.set_exception(std::current_exception());
    return failed.get_future();
  }
}

Outcomes finish_scoring(std::future<Outcomes>& future, size_t num_completions, Reward::Deadline deadline,
                        double timeout_s) {
  std::string reason;
  if (future.wait_until(deadline) == std::future_status::ready) {
    try {
      Outcomes outcomes = future.get();
      TEMPER_CHECK(outcomes.size() == num_completions, "{} outcomes for {} completions", outcomes.size(),
                   num_completions);
      return outcomes;
    } catch (const std::logic_error&) {
      throw;
    } catch (const std::exception& error) {
      reason = error.what();
    }
  } else {
    reason = format("gave no answer within {} s", timeout_s);
  }
  return Outcomes(num_completions, RewardOutcome{std::nan(""), reason});
}

}  // namespace

GroupScoring::GroupScoring(const std::vector<std::unique_ptr<Reward>>& rewards, RolloutGroup group, double timeout_s)
    : rewards_(rewards),
      group_(std::move(group)),
      timeout_s_(timeout_s),
      deadline_(std::chrono::steady_clock::now() + std::chrono::duration_cast<std::chrono::steady_clock::duration>(
                                                       std::chrono::duration<double>(timeout_s))) {
  const auto shared = std::make_shared<const RolloutGroup>(group_);  // a copy, out of the way of late rewards
  for (const auto& reward : rewards_) answers_.push_back(begin_scoring(*reward, shared, deadline_));
}

bool GroupScoring::ready() const {
  const auto is_ready = [](const auto& answer) {
    return answer.wait_for(std::chrono::seconds(0)) == std::future_status::ready;
  };
  return std::chrono::steady_clock::now() >= deadline_ || std::all_of(answers_.begin(), answers_.end(), is_ready);
}

RolloutGroup GroupScoring::finish() {
  const size_t num_completions = group_.completions.size();
  std::vector<Outcomes> outcomes;  // [K][completions]
  for (auto& answer : answers_) outcomes.push_back(finish_scoring(answer, num_completions, deadline_, timeout_s_));

  for (size_t i = 0; i < num_completions; ++i) {
    Completion& completion = group_.completions[i];
    completion.rewards.assign(rewards_.size(), std::nan(""));
    if (!completion.error.empty()) continue;  // its environment failed
    for (size_t k = 0; k < rewards_.size(); ++k) {
      RewardOutcome& outcome = outcomes[k][i];
      if (outcome.error.empty() && !std::isfinite(outcome.value))
        outcome.error = format("gave {}, which is not a finite number", outcome.value);
      if (outcome.error.empty())
        completion.rewards[k] = outcome.value;
      else
        completion.error +=
            format("{}reward {}: {}", completion.error.empty() ? "" : "; ", rewards_[k]->name(), outcome.error);
    }
  }
  return std::move(group_);
}

void score_group(const std::vector<std::unique_ptr<Reward>>& rewards, RolloutGroup& group, double timeout_s) {
  group = GroupScoring(rewards, std::move(group), timeout_s).finish();
}

RewardPool::RewardPool(std::vector<std::unique_ptr<Reward>> rewards, double timeout_s, std::function<void()> tell)
    : rewards_(std::move(rewards)), timeout_s_(timeout_s), tell_(std::move(tell)), thread_([this] { work(); }) {}

RewardPool::~RewardPool() {
  {
    std::lock_guard lock(mutex_);
    closed_ = true;
  }
  changed_.notify_all();
  for (const auto& reward : rewards_) reward->abandon();
  thread_.join();
}

void RewardPool::submit(RolloutGroup group) {
  {
    std::lock_guard lock(mutex_);
    waiting_.push_back(std::move(group));
    ++num_outstanding_;
  }
  changed_.notify_all();
}

std::optional<RolloutGroup> RewardPool::next(std::chrono::steady_clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  changed_.wait_until(lock, deadline, [this] { return !scored_.empty() || num_outstanding_ == 0 || failure_; });
  if (failure_) std::rethrow_exception(failure_);
  if (scored_.empty()) return std::nullopt;
  RolloutGroup group = std::move(scored_.front());
  scored_.pop_front();
  --num_outstanding_;
  return group;
}

std::vector<std::string> RewardPool::names() const {
  std::vector<std::string> names;
  for (const auto& reward : rewards_) names.push_back(reward->name());
  return names;
}

int64_t RewardPool::num_outstanding() const {
  std::lock_guard lock(mutex_);
  return num_outstanding_;
}

int64_t RewardPool::num_failed() const {
  std::lock_guard lock(mutex_);
  return num_failed_;
}

double RewardPool::busy_seconds() const {
  std::lock_guard lock(mutex_);
  return busy_seconds_;
}

void RewardPool::work() {
  std::unique_lock lock(mutex_);
  while (true) {
    changed_.wait(lock, [this] { return closed_ || !waiting_.empty(); });
    if (closed_) return;
    RolloutGroup group = std::move(waiting_.front());
    waiting_.pop_front();
    lock.unlock();
    const Stopwatch stopwatch;
    std::exception_ptr failure;
    try {
      score_group(rewards_, group, timeout_s_);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    if (closed_) return;  // abandoned: that is no failure of a reward
    busy_seconds_ += stopwatch.seconds();
    failure_ = failure;
    if (failure) break;
    for (const Completion& completion : group.completions) {
      if (completion.error.empty()) continue;
      if (++num_failed_ == 1)
        log_warning("scoring a completion failed ({}); such completions are left out and counted, not scored 0.",
                    completion.error);
    }
    scored_.push_back(std::move(group));
    announce(lock);
  }
  announce(lock);
}

// Without the lock: who is told may ask at once.
void RewardPool::announce(std::unique_lock<std::mutex>& lock) {
  lock.unlock();
  changed_.notify_all();
  if (tell_) tell_();
  lock.lock();
}

}  // namespace temper
