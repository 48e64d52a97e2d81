// Runs one stage from its (resumed) state to its end: evaluation before the first step and after the last, steps,
// checkpoints, a stop on request. What it has to tell goes to the hooks; apps write it down. One thread, beside that of
// the checkpoint writer.
#pragma once
#include <functional>
#include <optional>
#include <string>
#include <vector>

#include "core/rollout_source.h"
#include "trainer/evaluation.h"
#include "trainer/saver.h"
#include "trainer/train_loop.h"

namespace temper {

struct StageHooks {
  std::function<void(const MetricRecord&)> on_record;
  std::function<void(StepResult&)> on_step;  // before on_record; may add to the record
  std::function<void(int64_t step, StageSaver::Tier tier, bool good)> on_save;  // a checkpoint was written, or failed
  std::function<bool()> stop_requested;
  // Where rollouts come from elsewhere: adds to what is saved what the loop does not know.
  std::function<void(TrainCounters&)> before_save;
};

struct StageParts {
  const StageConfig* config = nullptr;
  TrainLoopParts loop;
  RolloutSource* source = nullptr;  // for evaluation; null: nothing to evaluate
  SamplingParams sampling;          // of training rollouts
  std::vector<EvalSet> eval_sets;
  std::vector<EvalText> eval_texts;
  std::string held_out_name;           // NAME of eval/NAME/loss
  std::vector<RolloutGroup> held_out;  // given completions that are not trained on
  PacedFileSystem* files = nullptr;    // the tiers'
  CheckpointTiers* tiers = nullptr;    // from here on the stage's saver's
  CheckpointHeader header;             // run, stage, config, model, data: what does not change from save to save
  StageHooks hooks;
};

enum class StageOutcome { kDone, kStopped };

class Stage {
 public:
  // counters: zero but for policy_version, or those of the checkpoint that was loaded.
  Stage(StageParts parts, TrainCounters counters, bool resumed);

  // kDone: max_steps taken and the last state saved. kStopped: saved after the step in which a stop was requested.
  // IoError after three failed saves in a row, or when the last save fails. The last one is on the disk, and copied to
  // the durable folder as far as that works, when it returns.
  StageOutcome run();

  const TrainCounters& counters() const { return loop_.counters(); }

 private:
  std::optional<StepResult> take_step();
  std::optional<MetricRecord> evaluate();
  void save(bool final);
  void evaluate_held_out(MetricRecord& record) const;
  CheckpointState state_to_save();
  bool due(int64_t every_steps) const;

  StageParts parts_;
  TrainLoop loop_;
  bool resumed_;
  StageSaver saver_;
};

}  // namespace temper
