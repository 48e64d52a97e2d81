// Groups from the engine in the trainer's own process: request() queues, next_group() steps the engine until a group is
// complete and scored, and returns it. Rewards that ask other programs do so while the engine goes on, one group after
// the other. One thread, the trainer's. The model may be updated while nothing is outstanding; the cache's memory goes
// back to the system then.
#pragma once
#include <deque>
#include <memory>
#include <optional>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/rollout_source.h"
#include "rollout/engine.h"
#include "rollout/reward_pool.h"

namespace temper {

struct InlineSourceOptions {
  double reward_timeout_s = 30;  // for each function on each group
  RolloutEnvironment environment = RolloutEnvironment::kNone;
  int64_t max_turns = 8;
};

class InlineRolloutSource : public RolloutSource {
 public:
  // engine and rewards outlive the source.
  InlineRolloutSource(Engine& engine, const std::vector<std::unique_ptr<Reward>>& rewards,
                      const InlineSourceOptions& options = {})
      : engine_(engine), rewards_(rewards), options_(options) {}

  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose = RolloutPurpose::kTrain) override;
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline) override;

  // Seconds spent on rewards while the engine stood still, and in the engine, since the last call: timing_s/reward and
  // timing_s/gen.
  double take_scoring_s() { return std::exchange(scoring_s_, 0); }
  double take_generation_s() { return std::exchange(generation_s_, 0); }

 private:
  struct Asked {
    Prompt prompt;
    RolloutPurpose purpose;
  };
  void run_engine();
  void begin_scoring();
  RolloutGroup take(GenerationResult result);

  Engine& engine_;
  const std::vector<std::unique_ptr<Reward>>& rewards_;
  InlineSourceOptions options_;
  int64_t next_id_ = 0;
  std::unordered_map<int64_t, Asked> outstanding_;  // by request id
  std::deque<GenerationResult> finished_;           // not scored yet
  std::optional<GroupScoring> scoring_;             // the group before them
  double scoring_s_ = 0;
  double generation_s_ = 0;
};

}  // namespace temper
