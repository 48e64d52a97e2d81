#include "trainer/stage.h"

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "trainer/hub_source.h"
#include "trainer/train_state.h"

namespace temper {
namespace {

constexpr int64_t kTextWindowTokens = 512;  // of bits per character

}  // namespace

Stage::Stage(StageParts parts, TrainCounters counters, bool resumed)
    : parts_(std::move(parts)),
      loop_(parts_.loop, counters),
      resumed_(resumed),
      saver_(*parts_.files, *parts_.tiers, parts_.config->checkpoint, parts_.loop.ranks,
             [this](int64_t step, StageSaver::Tier tier, bool good) {
               if (parts_.hooks.on_save) parts_.hooks.on_save(step, tier, good);
             }) {}

// produces: records, completions, states to be saved; consumes: steps of the train loop;
// waits for: the loop, and for the saver where it has not ended the save before; is unblocked by: both.
StageOutcome Stage::run() {
  const StageConfig& config = *parts_.config;
  if (!resumed_) {
    std::optional<MetricRecord> record = evaluate();
    if (!record) return StageOutcome::kStopped;
    parts_.hooks.on_record(*record);
  }
  while (counters().step < config.train.max_steps) {
    std::optional<StepResult> taken = take_step();
    if (!taken) {
      if (counters().step > 0 && saver_.newest_local() != counters().step) save(/*final=*/true);
      saver_.finish_all();
      return StageOutcome::kStopped;
    }
    StepResult& result = *taken;
    const bool last = counters().step == config.train.max_steps;
    bool stop = !last && parts_.loop.ranks.any(parts_.hooks.stop_requested());
    if (last || due(config.eval.every_steps)) {
      const std::optional<MetricRecord> judged = evaluate();
      if (judged)
        for (const auto& [name, value] : judged->values) result.record.set(name, value);
      else
        stop = true;
    }
    saver_.add_metrics(counters().step, result.record);
    parts_.hooks.on_step(result);
    parts_.hooks.on_record(result.record);
    // After the record is written: a run killed in between repeats the step and writes the line again.
    saver_.finish_ended();
    if (saver_.due(counters().step, last || stop)) save(last || stop);
    if (last || stop) saver_.finish_all();
    if (stop) return StageOutcome::kStopped;
  }
  return StageOutcome::kDone;
}

// Nothing where it was stopped while its groups did not come: then nothing of it was done.
std::optional<StepResult> Stage::take_step() try { return loop_.step(); } catch (const StoppedWaiting&) {
  log_info("stopped while waiting for groups of rollout workers: step {} is taken when the run goes on",
           counters().step + 1);
  return std::nullopt;
}

void Stage::save(bool final) {
  saver_.save([this] { return state_to_save(); }, counters().step, final);
}

bool Stage::due(int64_t every_steps) const { return every_steps > 0 && counters().step % every_steps == 0; }

// Nothing where it was stopped while its groups did not come.
std::optional<MetricRecord> Stage::evaluate() try {
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
} catch (const StoppedWaiting&) {
  log_info("stopped while waiting for groups of rollout workers: the evaluation after step {} is left out",
           counters().step);
  return std::nullopt;
}

// Given completions that were held out: the loss, and how often the chosen one is preferred.
void Stage::evaluate_held_out(MetricRecord& record) const {
  for (const auto& [name, value] : loop_.evaluate(build_step_batch(parts_.held_out, {}))) {
    if (name == "loss") record.set("eval/" + parts_.held_out_name + "/loss", value);
    if (name == "rewards/accuracies") record.set("eval/" + parts_.held_out_name + "/pair_accuracy", value);
  }
}

CheckpointState Stage::state_to_save() {
  CheckpointState state{parts_.header, HostState::of(parts_.loop).entries(), checkpoint_mesh(parts_.loop.ranks)};
  state.header.step = counters().step;
  state.header.policy_version = counters().policy_version;
  TrainCounters saved = counters();
  if (parts_.hooks.before_save) parts_.hooks.before_save(saved);
  state.header.blobs["trainer"] = save_counters(saved, parts_.loop);
  return state;
}

}  // namespace temper
