// Scores finished groups on a thread of its own, beside generation. The rollout source submits from its thread and
// takes scored groups from the same or another one.
//
// worker thread: produces scored groups; consumes submitted ones; waits for either; is unblocked by submit() and the
// destructor.
#pragma once
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <thread>
#include <vector>

#include "rollout/reward.h"

namespace temper {

// The scoring of one group: begun when it is made, all functions and completions at once.
class GroupScoring {
 public:
  // rewards outlive it. timeout_s: for each function.
  GroupScoring(const std::vector<std::unique_ptr<Reward>>& rewards, RolloutGroup group, double timeout_s);
  bool ready() const;  // finish() will not wait
  // Fills rewards [K] and error of every completion; one that has an error already keeps it. A reward that throws, is
  // late, or gives NaN or infinity leaves NaN in its place and its reason in error. Once.
  RolloutGroup finish();

 private:
  const std::vector<std::unique_ptr<Reward>>& rewards_;
  RolloutGroup group_;
  double timeout_s_;
  Reward::Deadline deadline_;
  std::vector<std::future<std::vector<RewardOutcome>>> answers_;  // one a reward
};

void score_group(const std::vector<std::unique_ptr<Reward>>& rewards, RolloutGroup& group, double timeout_s = 30);

class RewardPool {
 public:
  // timeout_s: for each function on each group. tell: called from the pool's thread when next() has something.
  explicit RewardPool(std::vector<std::unique_ptr<Reward>> rewards, double timeout_s = 30,
                      std::function<void()> tell = {});
  ~RewardPool();  // what was not taken is dropped, what is being scored abandoned
  RewardPool(const RewardPool&) = delete;
  RewardPool& operator=(const RewardPool&) = delete;

  void submit(RolloutGroup group);
  // The next scored group, in the order of submission; nothing at the deadline, or at once when nothing is outstanding.
  std::optional<RolloutGroup> next(std::chrono::steady_clock::time_point deadline);

  std::vector<std::string> names() const;
  int64_t num_outstanding() const;  // submitted and not taken
  int64_t num_failed() const;       // completions whose scoring failed, since the start
  double busy_seconds() const;      // spent on scoring, since the start

 private:
  void work();
  void announce(std::unique_lock<std::mutex>& lock);

  const std::vector<std::unique_ptr<Reward>> rewards_;
  const double timeout_s_;
  const std::function<void()> tell_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<RolloutGroup> waiting_, scored_;  // guarded by mutex_
  int64_t num_outstanding_ = 0;                // guarded by mutex_
  int64_t num_failed_ = 0;                     // guarded by mutex_
  double busy_seconds_ = 0;                    // guarded by mutex_
  bool closed_ = false;                        // guarded by mutex_
  std::exception_ptr failure_;                 // guarded by mutex_; rethrown by next()
  std::thread thread_;
};

}  // namespace temper
