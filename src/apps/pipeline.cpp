#include "apps/pipeline.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <filesystem>
#include <optional>

#include "apps/export_model.h"
#include "apps/memory_plan.h"
#include "apps/model_source.h"
#include "apps/rank_world.h"
#include "apps/run_directory.h"
#include "apps/stage_session.h"
#include "apps/worker_fleet.h"
#include "checkpoint/atomic_directory.h"
#include "comm/rank_board.h"
#include "config/load.h"
#include "config/stage_models.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/system_memory.h"
#include "model/device.h"
#include "model/hf_directory.h"
#include "observe/report.h"

namespace temper {
namespace fs = std::filesystem;

namespace {

// Where the run goes on.
struct StartPoint {
  size_t stage = 0;
  PolicyVersion first_version = 0;  // versions count steps: those of the stages before
  std::string model;                // directory to start from; empty: [model] init
  std::string checkpoint;           // given by checkpoint.resume = PATH
};

std::string start_model(const Config& config, const RunDirectory& run, size_t stage) {
  const int64_t before = start_stage(config, stage);
  return before < 0 ? config.stages[stage].model.path : run.stage_model(config.stages[static_cast<size_t>(before)]);
}

StartPoint find_start(const Config& config, const RunDirectory& run) {
  StartPoint start;
  std::optional<std::string> named;  // the stage of a checkpoint that the user chose
  const std::string& resume = config.checkpoint.resume;
  if (resume != "auto" && resume != "never") {
    FileSystem files;
    start.checkpoint = resume;
    named = read_checkpoint_header(files, resume).stage;
  }
  for (; start.stage < config.stages.size(); ++start.stage) {
    const StageConfig& stage = config.stages[start.stage];
    const bool done = fs::exists(run.stage_model(stage) + "/config.json");
    if (named ? *named == stage.name : !done) break;
    if (!done)
      throw ConfigError(
          "checkpoint.resume = {}: it belongs to stage {}, but stage {} before it has left no model in {}. Resume with "
          "auto, or start afresh with --checkpoint.resume=never.",
          resume, *named, stage.name, run.stage_model(stage));
    start.first_version += stage.train.max_steps;
  }
  if (named && start.stage == config.stages.size())
    throw ConfigError("checkpoint.resume = {}: it belongs to stage {}, which this configuration does not have.", resume,
                      *named);
  if (start.stage < config.stages.size()) start.model = start_model(config, run, start.stage);
  return start;
}

ResumePoint resume_point(const Config& config, size_t stage, int64_t step) {
  ResumePoint point;
  for (const StageConfig& known : config.stages) point.stage_names.push_back(known.name);
  point.stage = stage;
  point.step = step;
  return point;
}

// Every rank does it: a tier may be the node's own. Those of one node may meet.
void set_aside_stages(const Config& config, const RunDirectory& run, size_t first) {
  FileSystem files;
  for (size_t i = first; i < config.stages.size(); ++i)
    CheckpointTiers(files, run.checkpoints(config.stages[i])).set_aside_newer_than(-1);
}

// Going back to a checkpoint by name gives up what came after it: later stages must not resume from that. Nor must a
// run that starts afresh from what the tiers outside its directory still hold.
void give_up_later_stages(const Config& config, const RunDirectory& run, const StartPoint& start, const Ranks& ranks) {
  const bool afresh = config.checkpoint.resume == "never";
  if (start.checkpoint.empty() && !afresh) return;
  ranks.wait_for_all("what is there is read");
  set_aside_stages(config, run, afresh ? 0 : start.stage + 1);
  if (ranks.leads())
    for (size_t i = start.stage; i < config.stages.size(); ++i) fs::remove_all(run.stage_model(config.stages[i]));
  ranks.wait_for_all("later stages are set aside");
}

void log_device(const Config& config) {
  const ComputeType type = training_type(config.run);
  log_info("device {}, dtype {}, run directory {}", describe(type.device),
           type.compute == at::kBFloat16 ? "bf16" : "f32", config.run_dir());
}

// Beside the first rank, where the configuration and the command want them.
std::unique_ptr<WorkerFleet> start_workers(const Config& config, const PipelineOptions& options,
                                           const RunDirectory& run, const Ranks& ranks) {
  const auto uses_hub = [](const StageConfig& stage) { return stage.uses_hub(); };
  if (!ranks.leads() || options.worker_arguments.empty() || config.rollout.workers == 0 ||
      std::none_of(config.stages.begin(), config.stages.end(), uses_hub))
    return nullptr;
  return std::make_unique<WorkerFleet>(config.rollout.workers, options.worker_arguments, run.path() + "/logs");
}

ExitCode run_stages(const Config& config, const PipelineOptions& options, const Ranks& ranks, RunDirectory& run) {
  StartPoint start = find_start(config, run);
  give_up_later_stages(config, run, start, ranks);
  const std::unique_ptr<WorkerFleet> workers = start_workers(config, options, run, ranks);
  const auto check_workers = [&workers] {
    if (workers) workers->check();
  };
  bool sinks_open = false;
  for (size_t i = start.stage; i < config.stages.size(); ++i) {
    const StageConfig& stage = config.stages[i];
    refuse_if_too_large(stage, start.model);
    StageSession session(stage, start.model, run, dump_toml(config), start.first_version, ranks, check_workers);
    std::optional<int64_t> step;
    if (i == start.stage || stage.checkpoint.resume == "auto")
      step = session.resume(i == start.stage ? start.checkpoint : "");
    if (!sinks_open) {
      const bool resumed = step.has_value() || i > 0;
      run.open_sinks(resume_point(config, i, step.value_or(-1)),
                     start.first_version + step.value_or(0) + (step ? 1 : 0), resumed);
      sinks_open = true;
    }
    if (session.run() == StageOutcome::kStopped) {
      log_info("stopped on request, checkpoint written. To continue: {}", options.continue_command);
      return ExitCode::kStopped;
    }
    session.export_model(run.stage_model(stage), at::kFloat);
    session.release_memory();
    if (i + 1 == config.stages.size()) session.export_model(run.model(), export_dtype(config, i));
    start.first_version += stage.train.max_steps;
    if (i + 1 < config.stages.size()) start.model = start_model(config, run, i + 1);
  }
  if (start.stage == config.stages.size() && ranks.leads()) {
    // All stages were done, but the run died before its model was written.
    const ModelSource last = load_model_source(run.stage_model(config.stages.back()));
    FileSystem files;
    write_directory_atomically(files, run.model(), [&](const std::string& folder) {
      const LoadedModel model = load(last.weights);
      write_model_files(folder, model.config, model.parameters, export_dtype(config, config.stages.size() - 1));
      last.tokenizer->save(folder);
    });
  }
  if (!ranks.leads()) return ExitCode::kDone;
  fs::remove_all(run.stages());
  try {
    write_report(run.path());
  } catch (const Error& error) {
    log_warning("report.html was not written: {}", error.what());
  }
  log_info("done: model in {}, report in {}/report.html", run.model(), run.path());
  return ExitCode::kDone;
}

}  // namespace

std::string continuing(std::string typed_command, const Config& config) {
  return typed_command + (config.checkpoint.resume == "auto" ? "" : " --checkpoint.resume=auto");
}

ExitCode run_pipeline(const Config& config, const PipelineOptions& options, const Ranks& ranks) {
  for (const std::string& warning : config.warnings) log_warning("{}", warning);
  install_stop_handlers();
  set_deterministic(config.run.deterministic);
  keep_freed_memory();
  RunDirectory run(config, ranks);
  log_device(config);
  warn_of_clocks(ranks);
  if (Communicator* communicator = ranks.communicator()) {
    const auto late =
        std::chrono::milliseconds(static_cast<int64_t>(std::min(60.0, config.train.comm_timeout_s / 2) * 1000));
    communicator->set_board(std::make_unique<RankBoard>(run.path() + "/logs", ranks.rank(), ranks.size(), late));
  }
  if (fs::exists(run.model() + "/config.json") && config.checkpoint.resume == "auto") {
    log_info("{} is finished: its model is in {}. Start afresh with --checkpoint.resume=never.", run.path(),
             run.model());
    return ExitCode::kDone;
  }
  run.begin(options.continue_command, ranks.size(), options.terminal_columns);
  try {
    const ExitCode code = run_stages(config, options, ranks, run);
    run.end(code == ExitCode::kDone ? RunPhase::kFinished : RunPhase::kStopped, static_cast<int>(code));
    return code;
  } catch (const std::exception& error) {  // the directory keeps why it ended; main() tells the user
    const auto* known = dynamic_cast<const Error*>(&error);
    const std::string text = error.what();
    run.end(RunPhase::kFailed, known != nullptr ? static_cast<int>(known->exit_code()) : 1,
            text.substr(0, text.find('\n')));
    throw;
  }
}

}  // namespace temper
