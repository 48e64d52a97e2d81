// What rewards share that score a completion by waiting for another program: a group's completions are scored several
// at a time, on threads of the reward's own, each with its own error.
#pragma once
#include <c10/core/thread_pool.h>

#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "core/child_process.h"
#include "rollout/reward.h"

namespace temper {

class ParallelReward : public Reward {
 public:
  // num_at_once: threads; each call of score_one() comes from one of them.
  ParallelReward(std::string name, int num_at_once);
  const std::string& name() const override { return name_; }
  // The completions get a little less time than the deadline leaves, so that those that are done count though another
  // one is late.
  std::future<std::vector<RewardOutcome>> score(std::shared_ptr<const RolloutGroup> group, Deadline deadline) override;
  void abandon() override;  // programs that run are killed

 protected:
  // Throws with the reason where the completion cannot be scored (in time).
  virtual double score_one(const Prompt& prompt, const Completion& completion, Deadline deadline) = 0;
  // While a program scores, so that abandon() finds it. Inside the program's life.
  class Running {
   public:
    Running(const ParallelReward& reward, ChildProcess& program);
    ~Running();
    Running(const Running&) = delete;
    Running& operator=(const Running&) = delete;

   private:
    const ParallelReward& reward_;
    ChildProcess& program_;
  };
  // Ends the threads; what has not begun is dropped. Derived classes call it first thing in their destructor.
  void stop() { pool_.reset(); }

 private:
  std::string name_;
  mutable std::mutex mutex_;
  mutable std::set<ChildProcess*> running_;  // guarded by mutex_
  bool abandoned_ = false;                   // guarded by mutex_
  std::unique_ptr<c10::ThreadPool> pool_;
};

}  // namespace temper
