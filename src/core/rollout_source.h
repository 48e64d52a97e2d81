// Where the trainer gets groups from: the engine in its own process, or (many processes) the hub. One caller thread.
#pragma once
#include <chrono>
#include <optional>
#include <vector>

#include "core/rollout_types.h"

namespace temper {

class RolloutSource {
 public:
  virtual ~RolloutSource() = default;
  // Asks for one group of num_completions a prompt. Groups come back scored, in any order.
  virtual void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                       RolloutPurpose purpose = RolloutPurpose::kTrain) = 0;
  // The next finished group; nothing at the deadline or when nothing is outstanding.
  virtual std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) = 0;
};

}  // namespace temper
