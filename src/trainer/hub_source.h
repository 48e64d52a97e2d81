// Rollouts from the hub's workers, for all ranks of the trainer: the first rank's service has them, every rank gets
// every group. All ranks make the same calls in the same order, each from one thread.
#pragma once
#include <deque>
#include <functional>

#include "core/rollout_source.h"
#include "trainer/hub_service.h"
#include "trainer/ranks.h"

namespace temper {

class HubSource final : public RolloutSource {
 public:
  // service: null on all ranks but the first; outlives this. check: called now and then while nothing comes; throws
  // where nothing can come any more.
  HubSource(HubService* service, const Ranks& ranks, std::function<void()> check)
      : service_(service), ranks_(ranks), check_(std::move(check)) {}

  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose) override;
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) override;
  void filtered(int64_t count);

  // Seconds spent in next_group() since the last call.
  double take_wait_s() { return std::exchange(wait_s_, 0); }

 private:
  std::vector<RolloutGroup> collect(std::chrono::steady_clock::time_point deadline) const;
  void share(std::vector<RolloutGroup> groups, bool& late);

  HubService* service_;
  Ranks ranks_;
  std::function<void()> check_;
  std::deque<RolloutGroup> groups_;  // shared, not handed out
  double wait_s_ = 0;
};

}  // namespace temper
