// status.json of a run directory: how far the run is, and which process writes it. The first trainer rank keeps it up
// to date (StatusFile); `temper status`, a dashboard or a script reads it. The file is replaced as a whole, never
// half-written; a reader needs no lock.
#pragma once
#include <condition_variable>
#include <cstdint>
#include <functional>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "core/clock.h"
#include "core/metric_record.h"

namespace temper {

// What the process that writes the file says of itself; whether it still lives is for the reader to find out.
enum class RunPhase { kStarting, kRunning, kStopped, kFinished, kFailed };
const char* run_phase_name(RunPhase phase);  // starting, running, …

struct RunStatus {
  struct Stage {
    std::string name;
    int64_t max_steps = 0;
    std::string checkpoints;  // the folder of its checkpoints
    // Of those in the other tiers (checkpoint.ram_dir, durable_dir); empty: there is no such tier.
    std::string ram_checkpoints = {}, durable_checkpoints = {};
  };
  // Of the rollout workers' hub, where the stage under way has one.
  struct Hub {
    struct Worker {
      std::string name;
      int64_t version = -1;  // of the weights it generates with; -1: none yet
      int64_t leases = 0;
      double silent_s = 0;  // since it was last heard of
    };
    std::string address;
    int64_t epoch = 0;
    int64_t version = 0;  // of the newest weights
    int64_t num_workers = 0;
    int64_t num_idle = 0;  // without a lease
    int64_t num_leases = 0;
    int64_t num_groups = 0;         // taken in by this process
    int64_t num_dropped_stale = 0;  // of these, too old for a step
    int64_t num_failed = 0;         // prompts without a group after the last attempt
    double groups_per_s = 0;        // of the last minute
    std::vector<Worker> workers;    // the first kListedWorkers, by name
  };
  static constexpr size_t kListedWorkers = 64;

  RunPhase phase = RunPhase::kStarting;
  std::string error;  // of kFailed
  int exit_code = 0;  // of kFailed and kStopped

  std::string run;  // its name
  std::string version;
  std::string host;
  std::string slurm_job;  // empty: none
  int64_t pid = 0;
  int64_t start_ticks = 0;  // of the process: tells it from a later one with the same number
  int64_t num_ranks = 1;
  int64_t starts = 1;   // of the trainer in this run directory so far, this one included
  std::string folder;   // where the command was given
  std::string command;  // that began the run, and continues it

  // Seconds since the Unix epoch, by the clock of `host`.
  double started = 0;    // the process
  double heartbeat = 0;  // the file was last written
  double progress = 0;   // the last step or evaluation was done; 0: none yet

  std::vector<Stage> stages;
  int64_t stage = -1;  // index of the one under way; -1: none yet
  int64_t step = 0;    // done in this stage
  int64_t policy_version = 0;
  double seconds_per_step = 0;  // a mean over this stage so far; 0: not known yet
  int64_t failed_saves = 0;     // by this process
  int64_t saved_stage = -1;     // of the last checkpoint that this process wrote; -1: none yet
  int64_t saved_step = 0;
  double saved = 0;  // when
  std::optional<Hub> hub;

  double seconds_left() const;  // of this stage; NaN where it is not known
};

std::string to_json(const RunStatus& status);
// Throws std::invalid_argument with the reason alone: the caller knows the file.
RunStatus parse_run_status(std::string_view text);
// Nothing: there is no such file. FormatError.
std::optional<RunStatus> read_run_status(const std::string& path);

// Keeps the file: at most once a second, at least every kHeartbeatSeconds, from a thread of its own, so that a step of
// an hour does not look like death. A write that fails (disk full) is said once; training never stops for it. The other
// calls come from one thread.
class StatusFile {
 public:
  static constexpr double kHeartbeatSeconds = 5;

  // Host, process, version and times of `status` are filled in.
  StatusFile(std::string path, RunStatus status);
  ~StatusFile();
  StatusFile(const StatusFile&) = delete;
  StatusFile& operator=(const StatusFile&) = delete;

  void begin_stage(size_t stage, int64_t first_step);
  void update(const MetricRecord& record);
  void saved(int64_t step, bool good);
  // Asked at each write, from the writing thread, until it is replaced; empty: there is no hub.
  void watch_hub(std::function<RunStatus::Hub()> figures);
  // The last word, written at once.
  void end(RunPhase phase, int exit_code, const std::string& error = "");

 private:
  void write();  // REQUIRES: mutex_ held
  void keep_writing();

  std::string path_;
  std::mutex mutex_;
  std::condition_variable changed_;
  RunStatus status_;                     // guarded by mutex_
  std::function<RunStatus::Hub()> hub_;  // guarded by mutex_
  bool dirty_ = false;                   // guarded by mutex_
  bool over_ = false;                    // guarded by mutex_
  bool complained_ = false;              // guarded by mutex_
  int64_t first_step_ = 0;               // of this stage in this process
  Stopwatch since_first_step_;
  std::thread writer_;
};

}  // namespace temper
