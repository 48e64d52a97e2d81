// runs/NAME: its lock, the places of its files, and what a run shows and writes there as it goes: metrics.jsonl,
// TensorBoard, completions.jsonl, status.json, the progress bar, the Prometheus endpoint. One object a process; one
// thread. Of several ranks the first writes; the others know the places, and keep a log of their own.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/tiers.h"
#include "config/config.h"
#include "core/files.h"
#include "core/metric_record.h"
#include "observe/metric_sink.h"
#include "observe/progress.h"
#include "observe/prometheus.h"
#include "observe/run_status.h"
#include "observe/tensorboard.h"
#include "trainer/train_loop.h"

namespace temper {

// Where the run keeps what a stage made.
std::string stage_model_path(const Config& config, const StageConfig& stage);
// Turns the "stage:NAME" of a stage's frozen models and critic into directories.
void locate_models(const Config& config, StageConfig& stage);

class RunDirectory {
 public:
  // Makes and locks the directory, and the folders of this run that checkpoints have elsewhere. With checkpoint.resume
  // = never an earlier run's directory is renamed aside first.
  explicit RunDirectory(const Config& config, const Ranks& ranks = {});

  // From here on status.json tells how the run is. command: what to type to continue it.
  // terminal_columns: of the launcher's, which shows what this process writes; 0: standard error is what it is.
  void begin(const std::string& command, int num_ranks, int terminal_columns);

  const std::string& path() const { return path_; }
  const Config& config() const { return config_; }
  std::string stage_model(const StageConfig& stage) const { return stage_model_path(config_, stage); }
  std::string stages() const { return path_ + "/stages"; }
  // Where the stage's checkpoints are: local, and the other tiers that there are.
  TierOptions checkpoints(const StageConfig& stage) const;
  std::string model() const { return path_ + "/model"; }
  std::string failed_completions() const { return path_ + "/failed_completions.jsonl"; }

  // Cuts the files of an earlier attempt back to the resumed point and opens them. Call once, before the first write.
  void open_sinks(const ResumePoint& point, int64_t next_global_step, bool resumed);

  void begin_stage(const StageConfig& stage, int64_t first_step);
  void write(const MetricRecord& record);
  void write_completions(const StepResult& step, const std::vector<std::string>& reward_names, int64_t count);
  // For status.json, while what is returned lives: figures is called from another thread.
  [[nodiscard]] std::shared_ptr<void> watch_hub(std::function<RunStatus::Hub()> figures);
  void saved(int64_t step, bool good);  // a checkpoint, or none for want of space
  void end_stage();
  // How the run ends in this process, for status.json. error: of a run that failed.
  void end(RunPhase phase, int exit_code, const std::string& error = "");

 private:
  void claim();
  void note_progress(const std::string& stage, int64_t step) const;
  std::string checkpoint_folder(const std::string& key) const;

  Config config_;
  int rank_;
  bool leads_;
  std::string path_;
  ProgressOptions progress_options_;
  std::vector<std::unique_ptr<FileLock>> locks_;
  std::unique_ptr<JsonlSink> metrics_, completions_;
  std::unique_ptr<TensorBoardWriter> tensorboard_;
  std::unique_ptr<Progress> progress_;
  std::unique_ptr<StatusFile> status_;
  std::unique_ptr<PrometheusEndpoint> prometheus_;
  int64_t log_every_ = 1;
};

}  // namespace temper
