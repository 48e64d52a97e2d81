// Rollouts from the hub's workers, for all ranks of the trainer: the first rank's service has them, every rank gets
// every group. All ranks make the same calls in the same order, each from one thread.
#pragma once
#include <deque>
#include <exception>
#include <functional>

#include "core/rollout_source.h"
#include "trainer/hub_service.h"
#include "trainer/ranks.h"

namespace temper {

// By next_group(), on all ranks: the run is to stop, and no group comes with which to finish what is under way.
class StoppedWaiting : public std::exception {
 public:
  const char* what() const noexcept override { return "stopped while waiting for groups of rollout workers"; }
};

class HubSource final : public RolloutSource {
 public:
  // service: null on all ranks but the first; outlives this. check: called now and then while nothing comes; throws
  // where nothing can come any more. stop_requested: then the wait ends without workers, or after `patience` without
  // a group.
  HubSource(
      HubService* service, const Ranks& ranks, std::function<void()> check,
      std::function<bool()> stop_requested = [] { return false; },
      std::chrono::milliseconds patience = std::chrono::seconds(5))
      : service_(service),
        ranks_(ranks),
        check_(std::move(check)),
        stop_requested_(std::move(stop_requested)),
        patience_(patience) {}

  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose) override;
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) override;
  void filtered(int64_t count);

  // Seconds spent in next_group() since the last call.
  double take_wait_s() { return std::exchange(wait_s_, 0); }

 private:
  std::vector<RolloutGroup> collect(std::chrono::steady_clock::time_point deadline, bool stopping) const;
  // Of a round of waiting: the first rank's time is up; any rank is to stop.
  struct Signs {
    bool late = false, stop = false;
  };
  Signs share(std::vector<RolloutGroup> groups, Signs own);

  HubService* service_;
  Ranks ranks_;
  std::function<void()> check_;
  std::function<bool()> stop_requested_;
  std::chrono::milliseconds patience_;  // then the ranks hear that nothing is there yet
  std::deque<RolloutGroup> groups_;     // shared, not handed out
  double wait_s_ = 0;
};

}  // namespace temper
