// The seam of rewards: each scores the completions of a group, asynchronously, so that an external process or a reward
// model can batch and wait without holding generation up. A completion that cannot be scored gets a reason, never the
// reward 0. RewardPool (reward_pool.h) is the only caller and calls from one thread; implementations may answer from
// any.
#pragma once
#include <c10/core/Device.h>
#include <c10/core/ScalarType.h>

#include <chrono>
#include <future>
#include <limits>
#include <memory>
#include <string>
#include <vector>

#include "config/config.h"
#include "core/rollout_types.h"
#include "data/task.h"

namespace temper {

struct RewardOutcome {
  double value = std::numeric_limits<double>::quiet_NaN();
  std::string error;  // why it failed; empty: value holds
};

class Reward {
 public:
  using Deadline = std::chrono::steady_clock::time_point;

  virtual ~Reward() = default;
  virtual const std::string& name() const = 0;  // NAME of rewards/NAME/mean
  // One outcome a completion, in their order. The group is shared because a reward that misses the deadline may still
  // read it.
  virtual std::future<std::vector<RewardOutcome>> score(std::shared_ptr<const RolloutGroup> group,
                                                        Deadline deadline) = 0;
  // Nobody waits for what is being scored any more: it ends soon where it can. Any thread; then comes the destructor.
  virtual void abandon() {}
};

// The functions of [reward], in their order. `task` is the stage's generated task, or null; a reward model computes in
// `compute` on `device`. ConfigError for an unknown function, a missing or broken parameter, or "task" without one.
std::vector<std::unique_ptr<Reward>> make_rewards(const RewardSection& section, const Task* task,
                                                  c10::ScalarType compute = c10::ScalarType::Float,
                                                  c10::Device device = c10::kCPU);

// Correct = the first reward function gives 1.
inline bool is_correct(const Completion& completion) {
  return completion.error.empty() && !completion.rewards.empty() && completion.rewards[0] >= 1.0 - 1e-9;
}

}  // namespace temper
