// One stage's training, step by step: groups → advantages → losses → optimiser → published weights. Owns the counters
// that a checkpoint keeps; everything else is borrowed from the stage that made it. One thread.
#pragma once
#include <functional>
#include <vector>

#include "algos/algorithm.h"
#include "config/config.h"
#include "core/metric_record.h"
#include "core/rollout_types.h"
#include "trainer/adamw.h"
#include "trainer/policy.h"
#include "trainer/step_batch.h"

namespace temper {

// The groups with serials [first_serial, first_serial + count): rollouts of the current policy, or given examples.
using TakeGroups = std::function<std::vector<RolloutGroup>(int64_t first_serial, int64_t count)>;

struct TrainLoopParts {
  const StageConfig* config = nullptr;
  Policy* policy = nullptr;
  const Policy* reference = nullptr;  // where [algo] needs one
  Algorithm* algorithm = nullptr;
  AdamW* optimizer = nullptr;
  TakeGroups take_groups;
  std::vector<double> reward_weights;  // [K]; empty: no rewards (sft)
  double peak_flops = 0;               // of matrix products on this machine, for perf/mfu; 0: not measured
};

// What a checkpoint keeps beside weights and moments.
struct TrainCounters {
  int64_t step = 0;            // taken in this stage
  int64_t policy_version = 0;  // taken in the run: counts on through the stages
  int64_t next_serial = 0;     // the prompt cursor
};

struct StepResult {
  MetricRecord record;
  StepBatch batch;  // with advantages, for completions.jsonl
};

class TrainLoop {
 public:
  TrainLoop(TrainLoopParts parts, TrainCounters counters) : parts_(std::move(parts)), counters_(counters) {}

  // NumericsError when the loss or the gradient's norm is not finite; the weights are then those before the step.
  StepResult step();

  const TrainCounters& counters() const { return counters_; }

 private:
  struct Update;  // what the micro-batches of one step add up to

  void add_old_and_reference(StepBatch& batch, MetricRecord& record) const;
  bool has_gradient(const StepBatch& batch, int64_t completion) const;
  void run_mini_batch(const StepBatch& batch, const std::vector<int64_t>& completions, Update& update) const;
  void run_micro_batch(const MicroBatch& micro, const StepBatch& batch, const GlobalCounts& counts,
                       Update& update) const;
  void apply_gradients(Update& update);
  void update_kl_coef(const AdvantageReport& advantages, const Update& update);
  double temperature() const;
  void report(const StepBatch& batch, const AdvantageReport& advantages, const Update& update,
              MetricRecord& record) const;

  TrainLoopParts parts_;
  TrainCounters counters_;
};

// learning_rate after warm-up and decay, at step 1, 2, …, max_steps.
double scheduled_learning_rate(const OptimSection& optim, int64_t step, int64_t max_steps);

}  // namespace temper
