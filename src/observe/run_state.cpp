#include "observe/run_state.h"

#include <algorithm>
#include <cmath>
#include <filesystem>
#include <fstream>
#include <map>
#include <sstream>
#include <stdexcept>

#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/process.h"
#include "observe/metric_sink.h"

namespace temper {
namespace fs = std::filesystem;

namespace {

// A heartbeat comes every few seconds; a shared file system may show it late.
constexpr double kSilentAfterSeconds = 6 * StatusFile::kHeartbeatSeconds;
constexpr double kClockToleranceSeconds = 2;
constexpr int64_t kMetricsTailBytes = 4 << 20;

void check_is_run(const std::string& dir) {
  std::error_code code;
  if (!fs::is_directory(dir, code))
    throw IoError("{}: there is no such folder. Give the directory of a run, such as runs/NAME.", dir);
  for (const char* name : {"/status.json", "/lock", "/metrics.jsonl"})
    if (file_exists(dir + name)) return;
  throw IoError(
      "{}: holds none of status.json, lock and metrics.jsonl, so it is not the directory of a run. Give one such as "
      "runs/NAME.",
      dir);
}

std::string read_holder(const std::string& path) {
  std::ifstream in(path);
  std::string line;
  std::getline(in, line);
  return line;
}

// "host n1 pid 123 …" of a run that wrote no status.json; -1: another machine's, or no label.
int64_t pid_of_holder(const std::string& holder, const std::string& this_host) {
  std::istringstream words(holder);
  std::string host_word, host, pid_word;
  int64_t pid = -1;
  words >> host_word >> host >> pid_word >> pid;
  return words && host_word == "host" && pid_word == "pid" && host == this_host ? pid : -1;
}

bool runs(char process_state) { return process_state != '?' && process_state != 'Z' && process_state != 'X'; }

RunState state_of_process(RunReading& reading, const Observer& observer) {
  const RunStatus& status = *reading.status;
  const RunState alive = status.phase == RunPhase::kStarting ? RunState::kStarting : RunState::kRunning;
  if (status.host == observer.host) {
    const char process = observer.process_state(status.pid);
    if (!runs(process) || observer.process_start_ticks(status.pid) != status.start_ticks) return RunState::kDead;
    if (process == 'T')
      reading.notes.push_back(
          format("its process {} is stopped by a signal. kill -CONT {} lets it go on.", status.pid, status.pid));
    return alive;
  }
  if (reading.heartbeat_age_s < -kClockToleranceSeconds)
    reading.notes.push_back(
        format("the clock of {} is at least {} s ahead of this machine's: ages are not to be "
               "trusted. Synchronise both with NTP.",
               status.host, std::lround(-reading.heartbeat_age_s)));
  if (reading.heartbeat_age_s <= kSilentAfterSeconds) return alive;
  reading.notes.push_back(
      format("{} was last heard {} s ago: its process is gone, the machine is down or cut off, or "
             "its clock is behind this one's. Look there for process {}.",
             status.host, std::lround(reading.heartbeat_age_s), status.pid));
  return RunState::kSilent;
}

RunState find_state(RunReading& reading, const Observer& observer) {
  const bool has_model = file_exists(reading.dir + "/model/config.json");
  if (!reading.status) {
    if (has_model) return RunState::kFinished;
    const int64_t pid = pid_of_holder(reading.holder, observer.host);
    return pid >= 0 && runs(observer.process_state(pid)) ? RunState::kStarting : RunState::kDead;
  }
  switch (reading.status->phase) {
    case RunPhase::kFinished:
      return RunState::kFinished;
    case RunPhase::kFailed:
      return RunState::kFailed;
    case RunPhase::kStopped:
      return RunState::kStopped;
    case RunPhase::kStarting:
    case RunPhase::kRunning:
      break;
  }
  const RunState state = state_of_process(reading, observer);
  return state == RunState::kDead && has_model ? RunState::kFinished : state;
}

// The latest value of each metric of the last line's stage. Lines that are no records (torn, foreign) are passed over.
void read_metrics_tail(RunReading& reading) {
  std::ifstream in(reading.dir + "/metrics.jsonl", std::ios::binary | std::ios::ate);
  if (!in) return;
  const int64_t size = in.tellg(), begin = std::max<int64_t>(0, size - kMetricsTailBytes);
  in.seekg(begin);
  std::string line;
  if (begin > 0) std::getline(in, line);  // it began before
  std::map<std::string, LatestValue> latest;
  while (std::getline(in, line)) {
    MetricRecord record;
    try {
      record = parse_metric_record(line);
    } catch (const std::invalid_argument&) {
      continue;
    }
    if (record.stage != reading.stage) latest.clear();
    reading.stage = record.stage;
    for (const auto& [name, value] : record.values) latest[name] = {record.step, value};
  }
  reading.metrics.assign(latest.begin(), latest.end());
}

}  // namespace

const char* run_state_name(RunState state) {
  switch (state) {
    case RunState::kStarting:
      return "starting";
    case RunState::kRunning:
      return "running";
    case RunState::kSilent:
      return "silent";
    case RunState::kDead:
      return "dead";
    case RunState::kFailed:
      return "failed";
    case RunState::kStopped:
      return "stopped";
    case RunState::kFinished:
      return "finished";
  }
  return "dead";
}

Observer Observer::here() {
  return {host_name(), seconds_since_epoch(), temper::process_state, temper::process_start_ticks};
}

RunReading read_run_state(const std::string& run_dir, const Observer& observer) {
  check_is_run(run_dir);
  RunReading reading;
  reading.dir = run_dir;
  reading.holder = read_holder(run_dir + "/lock");
  reading.status = read_run_status(run_dir + "/status.json");
  if (reading.status) reading.heartbeat_age_s = observer.now - reading.status->heartbeat;
  reading.state = find_state(reading, observer);
  read_metrics_tail(reading);
  return reading;
}

}  // namespace temper
