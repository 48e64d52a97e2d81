// temper status RUN_DIR: who works on a run, how far it is, its checkpoints and latest metrics, from its files alone.
#include <algorithm>
#include <cmath>
#include <filesystem>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/run_checkpoints.h"
#include "apps/run_processes.h"
#include "core/clock.h"
#include "observe/progress.h"
#include "observe/run_state.h"

namespace temper {
namespace fs = std::filesystem;

namespace {

using Json = nlohmann::ordered_json;

bool shown(const std::string& metric) {
  for (const char* name :
       {"loss", "reward", "kl", "perf/throughput", "perf/rollout_tokens_per_s",
        "training/off_policy/trajectory_staleness/mean", "async/trainer/idle_ratio", "async/rollout/idle_ratio"})
    if (metric == name) return true;
  return metric.starts_with("eval/");
}

double age(double since, double now) { return since > 0 ? now - since : std::nan(""); }

// What to type, or to look at, next.
std::string advice(const RunReading& run) {
  const std::string again = run.status && !run.status->command.empty()
                                ? format("cd {} && {}", run.status->folder, run.status->command)
                                : format("temper run {}/config.toml", run.dir);
  switch (run.state) {
    case RunState::kStarting:
    case RunState::kRunning:
      return "";
    case RunState::kSilent:
      return "if it is gone, the same command continues from the newest checkpoint: " + again;
    case RunState::kDead:
      return "its process is gone without a word (killed, or the machine went down). It continues with: " + again;
    case RunState::kFailed:
      return "when that is mended, it continues with: " + again;
    case RunState::kStopped:
      return "it continues with: " + again;
    case RunState::kFinished:
      return format("its model is in {}/model.", run.dir);
  }
  return "";
}

std::string describe_process(const RunReading& run) {
  if (!run.status) return run.holder.empty() ? "" : ", last started by " + run.holder;
  const RunStatus& status = *run.status;
  std::string text = format(", host {} pid {}", status.host, status.pid);
  if (!status.slurm_job.empty()) text += format(" of Slurm job {}", status.slurm_job);
  if (status.num_ranks > 1) text += format(", {} ranks", status.num_ranks);
  if (status.starts > 1) text += format(", started {} times", status.starts);
  return text + format(", heartbeat {} ago", duration_text(std::max(0.0, run.heartbeat_age_s)));
}

std::string describe_progress(const RunStatus& status, double now, bool alive) {
  if (status.stage < 0) return "before its first stage";
  const RunStatus::Stage& stage = status.stages[static_cast<size_t>(status.stage)];
  std::string text = format("{} ({} of {}), step {} of {}, policy version {}", stage.name, status.stage + 1,
                            status.stages.size(), status.step, stage.max_steps, status.policy_version);
  if (status.progress > 0) text += format(", last progress {} ago", duration_text(age(status.progress, now)));
  if (alive && status.seconds_per_step > 0) {
    char step_s[32];
    std::snprintf(step_s, sizeof step_s, "%.3g", status.seconds_per_step);
    text += format("\nrate     {} s a step, {} left in this stage", step_s, duration_text(status.seconds_left()));
  }
  return text;
}

void print_tier(const TierCheckpoints& tier, const std::vector<TierCheckpoints>& all, bool alive, double now) {
  std::cout << "saved    " << tier.stage << (tier.tier == "local" ? "" : " (" + tier.tier + ")") << ": ";
  if (const CheckpointInfo* newest = tier.newest()) {
    std::cout << "step " << newest->step << ", committed, " << duration_text(age(newest->time, now)) << " ago, ";
    if (const int64_t lag = lag_steps(tier, all); lag > 0) std::cout << lag << " steps behind, ";
    std::cout << newest->path << "\n";
  } else {
    std::cout << "no checkpoint to resume from\n";
  }
  if (tier.num_unfinished > 0)
    std::cout << "         " << tier.num_unfinished
              << (alive ? " unfinished: being written, or left by an earlier process\n"
                        : " unfinished, left by a process that died; removed when the run continues\n");
  for (const std::string& why : tier.newer_unusable()) std::cout << "         not usable: " << why << "\n";
}

void print_text(const RunReading& run, const std::vector<TierCheckpoints>& saves, double now) {
  const bool alive = run.state == RunState::kStarting || run.state == RunState::kRunning;
  std::cout << run.dir << ": " << run_state_name(run.state) << describe_process(run) << "\n";
  if (run.status) {
    std::cout << "stage    " << describe_progress(*run.status, now, alive) << "\n";
    if (alive) std::cout << describe_ranks(read_ranks(run), now);
    if (alive && run.status->hub) std::cout << describe_hub(*run.status->hub);
    if (!run.status->error.empty())
      std::cout << "error    " << run.status->error << " (exit code " << run.status->exit_code << ")\n";
  }
  std::string metrics;
  for (const auto& [name, latest] : run.metrics) {
    if (!shown(name)) continue;
    char value[32];
    std::snprintf(value, sizeof value, "%.5g", latest.value);
    metrics += format("{}{} {} (step {})", metrics.empty() ? "" : ", ", name, value, latest.step);
  }
  if (!metrics.empty()) std::cout << "metrics  " << run.stage << ": " << metrics << "\n";
  for (const TierCheckpoints& tier : saves) print_tier(tier, saves, alive, now);
  if (run.status && run.status->failed_saves > 0)
    std::cout << "failed   " << run.status->failed_saves << " saves: logs/run.log says why\n";
  for (const std::string& note : run.notes) std::cout << "note     " << note << "\n";
  if (const std::string next = advice(run); !next.empty()) std::cout << "next     " << next << "\n";
}

void print_json(const RunReading& run, const std::vector<TierCheckpoints>& saves, double now) {
  Json metrics = Json::object(), checkpoints = Json::array();
  for (const auto& [name, latest] : run.metrics) metrics[name] = {{"step", latest.step}, {"value", latest.value}};
  for (const TierCheckpoints& tier : saves) {
    Json entry = {{"stage", tier.stage},
                  {"tier", tier.tier},
                  {"lag_steps", lag_steps(tier, saves)},
                  {"unfinished", tier.num_unfinished},
                  {"unusable", tier.newer_unusable()}};
    if (const CheckpointInfo* newest = tier.newest())
      entry["newest"] = {{"step", newest->step}, {"committed", true}, {"time", newest->time}, {"path", newest->path}};
    checkpoints.push_back(std::move(entry));
  }
  Json json = {{"run_dir", run.dir}, {"state", run_state_name(run.state)}, {"lock", run.holder}};
  if (run.status) {
    json["heartbeat_age_s"] = run.heartbeat_age_s;
    json["seconds_left"] = run.status->seconds_left();
    json["ranks"] = ranks_to_json(read_ranks(run), now);
    json["status"] = Json::parse(to_json(*run.status));
  }
  json["metrics_stage"] = run.stage;
  json["metrics"] = std::move(metrics);
  json["checkpoints"] = std::move(checkpoints);
  json["notes"] = run.notes;
  json["next"] = advice(run);
  std::cout << json.dump(2, ' ', false, Json::error_handler_t::replace) << "\n";
}

}  // namespace

int run_status(int argc, char** argv) {
  CommandLine line("status", "Says who works on a run and how far it is. Reads files only; the run notices nothing.",
                   "RUN_DIR [--json]");
  line.add_positional("RUN_DIR");
  line.add_flag("json",
                "print one JSON object instead: state is starting, running, silent, dead, failed, stopped or "
                "finished");
  if (!line.parse(argc, argv)) return 0;
  fs::path dir = fs::path(line.text("RUN_DIR")).lexically_normal();
  if (dir.filename().empty() && dir.has_parent_path()) dir = dir.parent_path();  // runs/a/
  const Observer here = Observer::here();
  const RunReading run = read_run_state(dir.string(), here);
  const std::vector<TierCheckpoints> saves = find_run_checkpoints(run.dir, run.status);
  if (line.flag("json"))
    print_json(run, saves, here.now);
  else
    print_text(run, saves, here.now);
  return 0;
}

}  // namespace temper
