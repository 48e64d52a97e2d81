// What a run directory says about its run to someone who only reads files: whether a process still works on it, how far
// it is, its latest metrics. `temper status` prints it. Nothing here writes or locks.
#pragma once
#include <cstdint>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "observe/run_status.h"

namespace temper {

enum class RunState {
  kStarting,
  kRunning,
  kSilent,  // on another machine, and not heard of for a while
  kDead,    // its process is gone without a word
  kFailed,  // it ended with an error
  kStopped,
  kFinished,
};
const char* run_state_name(RunState state);  // starting, running, …

// Where the reader stands; tests put in their own.
struct Observer {
  std::string host;
  double now = 0;  // seconds since the Unix epoch
  // Of this machine, as core/process.h.
  std::function<char(int64_t pid)> process_state;
  std::function<int64_t(int64_t pid)> process_start_ticks;

  static Observer here();
};

struct LatestValue {
  int64_t step = 0;
  double value = 0;
};

struct RunReading {
  std::string dir;
  RunState state = RunState::kDead;
  std::optional<RunStatus> status;  // nothing: the run has written no status.json
  std::string holder;               // what `lock` says: "host n1 pid 123"; may be of a process that is gone
  double heartbeat_age_s = 0;       // of status
  std::vector<std::string> notes;   // for the reader: a stopped process, clocks that differ
  std::string stage;                // of the last line of metrics.jsonl; empty: there is none
  std::vector<std::pair<std::string, LatestValue>> metrics;  // of that stage, by name, from the file's last megabytes
};

// IoError where the folder is none of a run.
RunReading read_run_state(const std::string& run_dir, const Observer& observer);

}  // namespace temper
