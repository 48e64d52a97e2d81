// One stage's training, step by step: groups → advantages → losses → optimiser → published weights. Owns the counters
// that a checkpoint keeps; everything else is borrowed from the stage that made it. One thread.
#pragma once
#include <functional>
#include <memory>
#include <vector>

#include "algos/algorithm.h"
#include "config/config.h"
#include "core/metric_record.h"
#include "core/rollout_types.h"
#include "trainer/adamw.h"
#include "trainer/ranks.h"
#include "trainer/step_batch.h"
#include "trainer/trainer_model.h"

namespace temper {

// The groups with serials [first_serial, first_serial + count): rollouts of the current policy, or given examples.
using TakeGroups = std::function<std::vector<RolloutGroup>(int64_t first_serial, int64_t count)>;

struct TrainLoopParts {
  const StageConfig* config = nullptr;
  TrainerModel* policy = nullptr;  // what the stage trains and hands on: a policy, or a reward model
  // Where [algo] needs them. With a shared backbone the critic is the policy, and has no optimiser of its own.
  TrainerModel* critic = nullptr;
  const TrainerModel* reference = nullptr;
  const TrainerModel* teacher = nullptr;
  Algorithm* algorithm = nullptr;
  AdamW* optimizer = nullptr;
  AdamW* critic_optimizer = nullptr;
  TakeGroups take_groups;
  std::vector<double> reward_weights;  // [K]; empty: no rewards (given completions)
  Ranks ranks;                         // each with the same weights; take_groups gives all of them the same groups
  double peak_flops = 0;               // of matrix products on this machine, for perf/mfu; 0: not measured
};

// What a checkpoint keeps beside weights and moments.
struct TrainCounters {
  int64_t step = 0;            // taken in this stage
  int64_t policy_version = 0;  // taken in the run: counts on through the stages
  int64_t next_serial = 0;     // the prompt cursor
  // Rollout workers run ahead: of the prompts below the cursor those that no step has had a group of.
  std::vector<int64_t> unended = {};
};

struct StepResult {
  MetricRecord record;
  StepBatch batch;  // with advantages, for completions.jsonl
};

class TrainLoop {
 public:
  TrainLoop(TrainLoopParts parts, TrainCounters counters);

  // NumericsError when the loss or a gradient's norm is not finite; the weights are then those before the update.
  StepResult step();

  // The loss's metrics on given examples, without an update: held-out pairs or completions.
  std::vector<std::pair<std::string, double>> evaluate(StepBatch batch) const;

  const TrainCounters& counters() const { return counters_; }

 private:
  struct Update;  // what the micro-batches of one step add up to

  StepBatch take_batch(MetricRecord& record);
  void add_model_outputs(StepBatch& batch, MetricRecord& record) const;
  void select_tokens(StepBatch& batch, const std::vector<int64_t>& mini_batch, int64_t update_index) const;
  std::vector<bool> find_gradients(const StepBatch& batch, const std::vector<int64_t>& completions) const;
  MetricSums run_mini_batch(const StepBatch& batch, const std::vector<int64_t>& completions, Update& update) const;
  MetricSums run_micro_batch(const MicroBatch& micro, const StepBatch& batch, const GlobalCounts& counts,
                             Update& update) const;
  void sum_gradients(Update& update) const;
  void forget_gradients() const;
  int64_t num_idle_passes(const std::vector<MicroBatch>& own) const;
  void idle_through(int64_t passes, bool with_backward) const;
  void end_pass() const;
  TrainerModel* own_critic() const;  // null: none, or it is the policy
  PolicyOutput forward(const MicroBatch& micro) const;
  PackOptions pack_options() const;
  bool drifted_too_far(const MetricSums& mini_batch) const;
  void apply_gradients(Update& update);
  void update_kl_coef(const StepBatch& batch, const AdvantageReport& advantages, const Update& update);
  double temperature() const;
  void report(const StepBatch& batch, const AdvantageReport& advantages, const Update& update,
              MetricRecord& record) const;

  TrainLoopParts parts_;
  TrainCounters counters_;
  std::unique_ptr<GradientSum> policy_sum_, critic_sum_;  // null: sharded weights, or no critic of its own
};

// learning_rate after warm-up and decay, at step 1, 2, …, max_steps.
double scheduled_learning_rate(const OptimSection& optim, int64_t step, int64_t max_steps);

}  // namespace temper
