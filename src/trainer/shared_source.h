// Several ranks, each with a source of its own, seen as one: a request is shared out among them, and every rank gets
// every group. All ranks make the same calls in the same order, each from one thread.
#pragma once
#include <deque>

#include "core/rollout_source.h"
#include "trainer/ranks.h"

namespace temper {

class SharedRolloutSource final : public RolloutSource {
 public:
  // own outlives this.
  SharedRolloutSource(RolloutSource& own, const Ranks& ranks) : own_(own), ranks_(ranks) {}

  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose) override;
  // The first call after requests generates all that was asked of this rank and exchanges it; the deadline bounds that
  // generation. CommError where a rank is late or gone.
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) override;

 private:
  RolloutSource& own_;
  Ranks ranks_;
  int64_t num_own_ = 0;       // asked of this rank, not exchanged yet
  bool outstanding_ = false;  // of any rank
  std::deque<RolloutGroup> groups_;
};

}  // namespace temper
