// Groups from the engine in the trainer's own process: request() queues, next_group() steps the engine until a group is
// complete, scores it and returns it. One thread, the trainer's. The model may be updated while nothing is outstanding;
// the cache's memory goes back to the system then.
#pragma once
#include <deque>
#include <functional>
#include <unordered_map>

#include "core/rollout_source.h"
#include "rollout/engine.h"

namespace temper {

class InlineRolloutSource : public RolloutSource {
 public:
  // Fills rewards or error of each completion; an exception of it is passed on.
  using Scorer = std::function<void(RolloutGroup&)>;

  // engine outlives the source.
  InlineRolloutSource(Engine& engine, Scorer scorer) : engine_(engine), scorer_(std::move(scorer)) {}

  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose = RolloutPurpose::kTrain) override;
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) override;

  // Seconds spent in the scorer, and in the engine, since the last call: timing_s/reward and timing_s/gen.
  double take_scoring_s() { return std::exchange(scoring_s_, 0); }
  double take_generation_s() { return std::exchange(generation_s_, 0); }

 private:
  Engine& engine_;
  Scorer scorer_;
  int64_t next_id_ = 0;
  struct Asked {
    Prompt prompt;
    RolloutPurpose purpose;
  };
  std::unordered_map<int64_t, Asked> outstanding_;  // by request id
  std::deque<GenerationResult> finished_;           // not handed out yet
  double scoring_s_ = 0;
  double generation_s_ = 0;
};

}  // namespace temper
