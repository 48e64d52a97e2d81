#include "observe/run_status.h"

#include <unistd.h>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>
#include <stdexcept>

#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

using Json = nlohmann::ordered_json;

constexpr int kFormat = 1;
constexpr std::array kPhases = {RunPhase::kStarting, RunPhase::kRunning, RunPhase::kStopped, RunPhase::kFinished,
                                RunPhase::kFailed};

RunPhase parse_phase(const std::string& name) {
  for (const RunPhase phase : kPhases)
    if (name == run_phase_name(phase)) return phase;
  throw std::invalid_argument(format("state \"{}\" is not known", name));
}

RunStatus::Hub hub_from_json(const Json& json) {
  RunStatus::Hub hub;
  json.at("address").get_to(hub.address);
  json.at("epoch").get_to(hub.epoch);
  json.at("version").get_to(hub.version);
  json.at("num_workers").get_to(hub.num_workers);
  json.at("idle_workers").get_to(hub.num_idle);
  json.at("leases").get_to(hub.num_leases);
  json.at("groups").get_to(hub.num_groups);
  json.at("dropped_stale").get_to(hub.num_dropped_stale);
  json.at("failed_prompts").get_to(hub.num_failed);
  json.at("groups_per_s").get_to(hub.groups_per_s);
  for (const Json& worker : json.at("workers"))
    hub.workers.push_back({worker.at("name").get<std::string>(), worker.at("version").get<int64_t>(),
                           worker.at("leases").get<int64_t>(), worker.at("silent_s").get<double>()});
  return hub;
}

Json hub_to_json(const RunStatus::Hub& hub) {
  Json workers = Json::array();
  for (const RunStatus::Hub::Worker& worker : hub.workers)
    workers.push_back(
        {{"name", worker.name}, {"version", worker.version}, {"leases", worker.leases}, {"silent_s", worker.silent_s}});
  Json json = {{"address", hub.address},
               {"epoch", hub.epoch},
               {"version", hub.version},
               {"num_workers", hub.num_workers},
               {"idle_workers", hub.num_idle},
               {"leases", hub.num_leases},
               {"groups", hub.num_groups},
               {"dropped_stale", hub.num_dropped_stale},
               {"failed_prompts", hub.num_failed},
               {"groups_per_s", hub.groups_per_s},
               {"workers", workers}};
  return json;
}

RunStatus from_json(const Json& json) {
  if (json.at("format").get<int>() > kFormat) throw std::invalid_argument("is of a newer version of temper");
  RunStatus status;
  status.phase = parse_phase(json.at("state").get<std::string>());
  json.at("error").get_to(status.error);
  json.at("exit_code").get_to(status.exit_code);
  json.at("run").get_to(status.run);
  json.at("version").get_to(status.version);
  json.at("host").get_to(status.host);
  json.at("slurm_job").get_to(status.slurm_job);
  json.at("pid").get_to(status.pid);
  json.at("start_ticks").get_to(status.start_ticks);
  json.at("ranks").get_to(status.num_ranks);
  status.starts = json.value("starts", int64_t{1});
  json.at("folder").get_to(status.folder);
  json.at("command").get_to(status.command);
  json.at("started").get_to(status.started);
  json.at("heartbeat").get_to(status.heartbeat);
  json.at("progress").get_to(status.progress);
  for (const Json& stage : json.at("stages"))
    status.stages.push_back({stage.at("name").get<std::string>(), stage.at("max_steps").get<int64_t>(),
                             stage.at("checkpoints").get<std::string>(), stage.value("ram_checkpoints", ""),
                             stage.value("durable_checkpoints", "")});
  json.at("stage").get_to(status.stage);
  json.at("step").get_to(status.step);
  json.at("policy_version").get_to(status.policy_version);
  json.at("seconds_per_step").get_to(status.seconds_per_step);
  json.at("failed_saves").get_to(status.failed_saves);
  json.at("saved_stage").get_to(status.saved_stage);
  json.at("saved_step").get_to(status.saved_step);
  json.at("saved").get_to(status.saved);
  if (json.contains("hub")) status.hub = hub_from_json(json.at("hub"));
  const auto num_stages = static_cast<int64_t>(status.stages.size());
  if (status.stage >= num_stages || status.saved_stage >= num_stages)
    throw std::invalid_argument("names a stage that it does not list");
  return status;
}

}  // namespace

const char* run_phase_name(RunPhase phase) {
  switch (phase) {
    case RunPhase::kStarting:
      return "starting";
    case RunPhase::kRunning:
      return "running";
    case RunPhase::kStopped:
      return "stopped";
    case RunPhase::kFinished:
      return "finished";
    case RunPhase::kFailed:
      return "failed";
  }
  return "failed";
}

double RunStatus::seconds_left() const {
  if (stage < 0 || seconds_per_step <= 0) return std::numeric_limits<double>::quiet_NaN();
  return seconds_per_step * static_cast<double>(stages[static_cast<size_t>(stage)].max_steps - step);
}

std::string to_json(const RunStatus& status) {
  Json stages = Json::array();
  for (const RunStatus::Stage& stage : status.stages)
    stages.push_back({{"name", stage.name},
                      {"max_steps", stage.max_steps},
                      {"checkpoints", stage.checkpoints},
                      {"ram_checkpoints", stage.ram_checkpoints},
                      {"durable_checkpoints", stage.durable_checkpoints}});
  Json json = {{"format", kFormat},
               {"state", run_phase_name(status.phase)},
               {"error", status.error},
               {"exit_code", status.exit_code},
               {"run", status.run},
               {"version", status.version},
               {"host", status.host},
               {"slurm_job", status.slurm_job},
               {"pid", status.pid},
               {"start_ticks", status.start_ticks},
               {"ranks", status.num_ranks},
               {"starts", status.starts},
               {"folder", status.folder},
               {"command", status.command},
               {"started", status.started},
               {"heartbeat", status.heartbeat},
               {"progress", status.progress},
               {"stages", stages},
               {"stage", status.stage},
               {"step", status.step},
               {"policy_version", status.policy_version},
               {"seconds_per_step", status.seconds_per_step},
               {"failed_saves", status.failed_saves},
               {"saved_stage", status.saved_stage},
               {"saved_step", status.saved_step},
               {"saved", status.saved}};
  if (status.hub) json["hub"] = hub_to_json(*status.hub);
  return json.dump(1, ' ', false, Json::error_handler_t::replace) + "\n";
}

RunStatus parse_run_status(std::string_view text) {
  try {
    return from_json(Json::parse(text));
  } catch (const Json::exception& error) {
    throw std::invalid_argument(format("is not what temper writes there ({})", error.what()));
  }
}

std::optional<RunStatus> read_run_status(const std::string& path) {
  if (!file_exists(path)) return std::nullopt;
  try {
    return parse_run_status(read_file(path));
  } catch (const std::invalid_argument& error) {
    throw FormatError("{}: {}. Remove it: a run writes it again.", path, error.what());
  }
}

namespace {

// By this process's predecessors in the run directory. A file that cannot be read is about to be replaced.
int64_t earlier_starts(const std::string& path) {
  try {
    const std::optional<RunStatus> before = read_run_status(path);
    return before ? before->starts : 0;
  } catch (const Error&) {
    return 0;
  }
}

}  // namespace

StatusFile::StatusFile(std::string path, RunStatus status) : path_(std::move(path)), status_(std::move(status)) {
  status_.version = TEMPER_VERSION;
  status_.host = host_name();
  status_.slurm_job = slurm_job();
  status_.pid = ::getpid();
  status_.start_ticks = process_start_ticks(status_.pid);
  status_.started = seconds_since_epoch();
  status_.starts = earlier_starts(path_) + 1;
  std::error_code unknown;
  status_.folder = std::filesystem::current_path(unknown).string();
  {
    std::lock_guard lock(mutex_);
    write();
  }
  writer_ = std::thread([this] { keep_writing(); });
}

StatusFile::~StatusFile() {
  {
    std::lock_guard lock(mutex_);
    over_ = true;
    if (dirty_) write();
  }
  changed_.notify_one();
  writer_.join();
}

void StatusFile::write() {
  status_.heartbeat = seconds_since_epoch();
  status_.hub.reset();
  if (hub_) status_.hub = hub_();
  dirty_ = false;
  if (replace_file(path_, to_json(status_)) || complained_) return;
  complained_ = true;
  log_warning("{}: could not be written; training goes on, but `temper status` will not know. Free some space there.",
              path_);
}

// produces: the file; consumes: status_; waits for: a change, or the next heartbeat; is unblocked by: the train loop,
// the clock.
void StatusFile::keep_writing() {
  using Clock = std::chrono::steady_clock;
  constexpr auto kShortest = std::chrono::seconds(1);
  constexpr auto kLongest =
      std::chrono::duration_cast<Clock::duration>(std::chrono::duration<double>(kHeartbeatSeconds));
  std::unique_lock lock(mutex_);
  auto written = Clock::now();
  while (!over_) {
    if (changed_.wait_until(lock, written + kShortest, [this] { return over_; })) return;
    if (!dirty_) changed_.wait_until(lock, written + kLongest, [this] { return over_ || dirty_; });
    if (over_) return;
    write();
    written = Clock::now();
  }
}

void StatusFile::begin_stage(size_t stage, int64_t first_step) {
  std::lock_guard lock(mutex_);
  status_.phase = RunPhase::kRunning;
  status_.stage = static_cast<int64_t>(stage);
  status_.step = first_step_ = first_step;
  status_.seconds_per_step = 0;
  since_first_step_.restart();
  write();
}

void StatusFile::update(const MetricRecord& record) {
  {
    std::lock_guard lock(mutex_);
    status_.step = record.step;
    status_.policy_version = record.policy_version;
    const bool is_first = status_.progress == 0;
    status_.progress = seconds_since_epoch();
    if (record.step <= first_step_)
      since_first_step_.restart();  // an evaluation before the first step
    else
      status_.seconds_per_step = since_first_step_.seconds() / static_cast<double>(record.step - first_step_);
    dirty_ = true;
    if (is_first) write();  // at once: who starts a world again asks whether the last one came this far
  }
  changed_.notify_one();
}

void StatusFile::saved(int64_t step, bool good) {
  {
    std::lock_guard lock(mutex_);
    if (good) {
      status_.saved_stage = status_.stage;
      status_.saved_step = step;
      status_.saved = seconds_since_epoch();
    } else {
      ++status_.failed_saves;
    }
    dirty_ = true;
  }
  changed_.notify_one();
}

void StatusFile::watch_hub(std::function<RunStatus::Hub()> figures) {
  std::lock_guard lock(mutex_);
  hub_ = std::move(figures);
}

void StatusFile::end(RunPhase phase, int exit_code, const std::string& error) {
  std::lock_guard lock(mutex_);
  status_.phase = phase;
  status_.exit_code = exit_code;
  status_.error = error;
  write();
}

}  // namespace temper
