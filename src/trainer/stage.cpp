#include "trainer/stage.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "trainer/train_state.h"

namespace temper {
namespace {

constexpr int kMaxFailedSaves = 3;          // in a row, then the run ends
constexpr int64_t kTextWindowTokens = 512;  // of bits per character

}  // namespace

Stage::Stage(StageParts parts, TrainCounters counters, bool resumed)
    : parts_(std::move(parts)), loop_(parts_.loop, counters), resumed_(resumed), writer_(*parts_.store) {}

// produces: records, completions, states to be saved; consumes: steps of the train loop;
// waits for: the loop, and for the writer where it has not ended the save before; is unblocked by: both.
StageOutcome Stage::run() {
  const StageConfig& config = *parts_.config;
  if (!resumed_) {
    MetricRecord record = evaluate();
    parts_.hooks.on_record(record);
  }
  while (counters().step < config.train.max_steps) {
    StepResult result = loop_.step();
    const bool last = counters().step == config.train.max_steps;
    const bool stop = !last && parts_.loop.ranks.any(parts_.hooks.stop_requested());
    if (last || due(config.eval.every_steps))
      for (const auto& [name, value] : evaluate().values) result.record.set(name, value);
    for (const auto& [name, value] : save_report_) result.record.set(name, value);
    save_report_.clear();
    parts_.hooks.on_step(result);
    parts_.hooks.on_record(result.record);
    // After the record is written: a run killed in between repeats the step and writes the line again.
    finish_ended_save();
    if (last || stop || due(config.checkpoint.local_every_steps)) save();
    if (last || stop) finish_save(/*must_succeed=*/true);
    if (stop) return StageOutcome::kStopped;
  }
  return StageOutcome::kDone;
}

bool Stage::due(int64_t every_steps) const { return every_steps > 0 && counters().step % every_steps == 0; }

MetricRecord Stage::evaluate() {
  const StageConfig& config = *parts_.config;
  MetricRecord record;
  record.stage = config.name;
  record.step = counters().step;
  record.policy_version = counters().policy_version;
  record.time = seconds_since_epoch();
  const Stopwatch watch;
  if (!parts_.eval_sets.empty()) {
    const auto groups = generate_eval(*parts_.source, parts_.eval_sets, config.eval, parts_.sampling);
    for (size_t i = 0; i < parts_.eval_sets.size(); ++i)
      add_eval_metrics(parts_.eval_sets[i], groups[i], config.eval.num_completions, record);
  }
  for (const EvalText& text : parts_.eval_texts)
    record.set("eval/" + text.name + "/bits_per_char",
               bits_per_character(*parts_.loop.policy, text, kTextWindowTokens, parts_.loop.ranks));
  if (!parts_.held_out.empty()) evaluate_held_out(record);
  if (!record.values.empty()) record.set("timing_s/eval", watch.seconds());
  return record;
}

// Given completions that were held out: the loss, and how often the chosen one is preferred.
void Stage::evaluate_held_out(MetricRecord& record) const {
  for (const auto& [name, value] : loop_.evaluate(build_step_batch(parts_.held_out, {}))) {
    if (name == "loss") record.set("eval/" + parts_.held_out_name + "/loss", value);
    if (name == "rewards/accuracies") record.set("eval/" + parts_.held_out_name + "/pair_accuracy", value);
  }
}

// The state is copied; the writer brings it to the disk while the next steps are taken.
void Stage::save() {
  const Stopwatch watch;
  if (writer_.busy()) finish_save(/*must_succeed=*/false);
  CheckpointState state{parts_.header, HostState::of(parts_.loop).entries(), checkpoint_mesh(parts_.loop.ranks)};
  state.header.step = saving_step_ = counters().step;
  state.header.policy_version = counters().policy_version;
  TrainCounters saved = counters();
  if (parts_.hooks.before_save) parts_.hooks.before_save(saved);
  state.header.blobs["trainer"] = save_counters(saved, parts_.loop);
  writer_.begin(state);
  save_report_ = {{"timing_s/save_checkpoint_blocked", watch.seconds()},
                  {"checkpoint/failed_saves", static_cast<double>(total_failed_saves_)}};
}

// All ranks at the same step: they fail alike.
void Stage::finish_ended_save() {
  if (writer_.busy() && !parts_.loop.ranks.any(!writer_.ended())) finish_save(/*must_succeed=*/false);
}

void Stage::finish_save(bool must_succeed) {
  std::string failure;  // the same on all ranks
  try {
    writer_.finish();
  } catch (const IoError& error) {
    failure = error.what();
  }
  if (parts_.hooks.on_save) parts_.hooks.on_save(saving_step_, failure.empty());
  if (failure.empty()) {
    num_failed_saves_ = 0;
    return;
  }
  ++total_failed_saves_;
  save_report_.emplace_back("checkpoint/failed_saves", static_cast<double>(total_failed_saves_));
  if (must_succeed || ++num_failed_saves_ >= kMaxFailedSaves) throw IoError("{}", failure);
  log_error("checkpoint of step {} failed ({} of {} in a row before the run ends): {}", saving_step_, num_failed_saves_,
            kMaxFailedSaves, failure);
}

}  // namespace temper
