#include "apps/run_directory.h"

#include <ATen/ATen.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "config/load.h"
#include "config/stage_models.h"
#include "core/clock.h"
#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/log_context.h"
#include "core/process.h"

namespace temper {
namespace fs = std::filesystem;

namespace {

// resume = never starts afresh; what an earlier run left is kept under another name.
void move_aside(const std::string& path) {
  if (!fs::exists(path) || fs::is_empty(path)) return;
  { FileLock nobody_writes_there(path + "/lock"); }
  std::string aside;
  for (int i = 1; aside.empty() || fs::exists(aside); ++i) aside = format("{}.old-{}", path, i);
  std::error_code code;
  fs::rename(path, aside, code);
  if (code)
    throw IoError("{}: the earlier run cannot be renamed to {} ({}). Choose another --run.name.", path, aside,
                  code.message());
  log_info("checkpoint.resume = never: the earlier run is now {}", aside);
}

// A requeued job may start before the file system has let go of the lock that its earlier start held on a lost node.
void wait_for_earlier_start(const std::string& lock) {
  constexpr double kLongest = 180;  // seconds; NFS frees the locks of a silent client after 90
  const std::string job = slurm_job();
  if (job.empty() || !is_locked(lock)) return;
  const auto is_own = [&] { return read_file(lock).ends_with(format(" of Slurm job {}\n", job)); };
  if (is_own()) log_info("{}: still held by an earlier start of this job; waiting up to {} s", lock, kLongest);
  for (const Stopwatch watch; is_locked(lock) && is_own() && watch.seconds() < kLongest && !stop_requested();)
    std::this_thread::sleep_for(std::chrono::milliseconds(200));
}

}  // namespace

std::string stage_model_path(const Config& config, const StageConfig& stage) {
  return config.run_dir() + "/stages/" + stage.name + "/model";
}

void locate_models(const Config& config, StageConfig& stage) {
  for (std::string* path : {&stage.model.reference, &stage.model.teacher, &stage.critic.path, &stage.reward.model})
    if (const auto name = stage_reference(*path))
      if (const auto index = stage_index(config, *name)) *path = stage_model_path(config, config.stages[*index]);
}

RunDirectory::RunDirectory(const Config& config, const Ranks& ranks)
    : config_(config), rank_(ranks.rank()), leads_(ranks.leads()), path_(config.run_dir()) {
  set_log_context(format("rank={}", rank_));
  ranks.lead([this] { claim(); });
  set_log_file(leads_ ? path_ + "/logs/run.log" : format("{}/logs/rank_{}.log", path_, ranks.rank()));
}

void RunDirectory::claim() {
  wait_for_earlier_start(path_ + "/lock");
  if (config_.checkpoint.resume == "never") move_aside(path_);
  make_directories(path_ + "/logs");
  locks_.push_back(std::make_unique<FileLock>(path_ + "/lock"));
  // Another run of this name, in another run.dir, must not mix its checkpoints with these.
  const CheckpointSection& checkpoint = config_.checkpoint;
  const std::pair<const char*, const std::string&> folders[] = {{"checkpoint.ram_dir", checkpoint.ram_dir},
                                                                {"checkpoint.local_dir", checkpoint.local_dir},
                                                                {"checkpoint.durable_dir", checkpoint.durable_dir}};
  for (const auto& [key, folder] : folders) {
    if (folder.empty()) continue;
    const std::string own = checkpoint_folder(folder);
    try {
      make_directories(own);
      locks_.push_back(std::make_unique<FileLock>(own + "/lock"));
    } catch (const IoError& error) {
      throw IoError("{} cannot be used: {}", key, error.what());
    }
  }
}

void RunDirectory::begin(const std::string& command, int num_ranks, int terminal_columns) {
  if (!leads_) return;
  progress_options_.num_ranks = num_ranks;
  if (terminal_columns > 0) {
    progress_options_.terminal = 1;
    progress_options_.width = terminal_columns;
  }
  RunStatus status;
  status.run = config_.run.name;
  status.num_ranks = num_ranks;
  status.command = command;
  for (const StageConfig& stage : config_.stages) {
    const TierOptions tiers = checkpoints(stage);
    status.stages.push_back({stage.name, stage.train.max_steps, tiers.local, tiers.ram, tiers.durable});
  }
  status_ = std::make_unique<StatusFile>(path_ + "/status.json", std::move(status));
}

// Of this run, where a key of [checkpoint] puts it: {rank} and {host} are this rank's.
std::string RunDirectory::checkpoint_folder(const std::string& key) const {
  std::string folder = key + "/" + config_.run.name;
  const auto put = [&folder](const std::string& word, const std::string& value) {
    for (size_t at; (at = folder.find(word)) != std::string::npos;) folder.replace(at, word.size(), value);
  };
  put("{rank}", std::to_string(rank_));
  put("{host}", host_name());
  return folder;
}

TierOptions RunDirectory::checkpoints(const StageConfig& stage) const {
  const CheckpointSection& checkpoint = stage.checkpoint;
  const auto place = [&](const std::string& folder) {
    return folder.empty() ? "" : checkpoint_folder(folder) + "/" + stage.name;
  };
  TierOptions tiers;
  tiers.ram = place(checkpoint.ram_dir);
  tiers.local = checkpoint.local_dir.empty() ? path_ + "/checkpoints/" + stage.name : place(checkpoint.local_dir);
  tiers.durable = place(checkpoint.durable_dir);
  tiers.keep_local = static_cast<int>(checkpoint.keep_local);
  tiers.keep_durable = static_cast<int>(checkpoint.keep_durable);
  tiers.replicate = checkpoint.replicate > 0;
  return tiers;
}

void RunDirectory::open_sinks(const ResumePoint& point, int64_t next_global_step, bool resumed) {
  if (!leads_) return;
  write_file_atomically(path_ + "/config.toml", dump_toml(config_));
  const std::string metrics = path_ + "/metrics.jsonl", completions = path_ + "/completions.jsonl";
  metrics_ = std::make_unique<JsonlSink>(metrics, resume_length(metrics, point));
  completions_ = std::make_unique<JsonlSink>(completions, resume_length(completions, point));
  if (config_.log.tensorboard)
    tensorboard_ =
        std::make_unique<TensorBoardWriter>(path_ + "/tb", resumed ? std::optional(next_global_step) : std::nullopt);
  progress_ = std::make_unique<Progress>(progress_options_);
  if (!config_.log.prometheus.empty()) {
    prometheus_ = std::make_unique<PrometheusEndpoint>(config_.log.prometheus, config_.run.name);
    log_info("metrics for Prometheus: http://{}/metrics", prometheus_->address());
  }
}

void RunDirectory::note_progress(const std::string& stage, int64_t step) const {
  set_log_context(format("rank={} stage={} step={}", rank_, stage, step));
}

void RunDirectory::begin_stage(const StageConfig& stage, int64_t first_step) {
  note_progress(stage.name, first_step);
  if (!leads_) return;
  log_every_ = stage.log.every_steps;
  progress_->begin_stage(stage.name, stage.train.max_steps, first_step);
  status_->begin_stage(*stage_index(config_, stage.name), first_step);
  if (prometheus_) prometheus_->begin_stage(stage.name, stage.train.max_steps);
}

void RunDirectory::write(const MetricRecord& record) {
  note_progress(record.stage, record.step);
  if (!leads_) return;
  progress_->update(record);
  status_->update(record);
  if (prometheus_) prometheus_->write(record);
  bool evaluated = record.step == 0;
  for (const auto& [name, value] : record.values) evaluated = evaluated || name.starts_with("eval/");
  if (!evaluated && record.step % log_every_ != 0) return;
  metrics_->write(record);
  if (tensorboard_) tensorboard_->write(record, record.policy_version);
}

void RunDirectory::write_completions(const StepResult& step, const std::vector<std::string>& reward_names,
                                     int64_t count) {
  if (!leads_) return;
  const StepBatch& batch = step.batch;
  const std::vector<int64_t> offsets = batch.loss.offsets();
  // The advantage of a completion: its first token's. Failed completions have none.
  std::vector<std::vector<double>> advantages;
  for (const RolloutGroup& group : batch.groups)
    advantages.emplace_back(group.completions.size(), std::numeric_limits<double>::quiet_NaN());
  if (batch.loss.advantages.defined())
    for (size_t i = 0; i < batch.sequences.size(); ++i)
      advantages[batch.sequences[i].group][batch.sequences[i].index] = batch.loss.advantages[offsets[i]].item<double>();

  for (size_t g = 0; g < batch.groups.size() && count > 0; ++g) {
    const RolloutGroup& group = batch.groups[g];
    CompletionRecord record;
    record.stage = step.record.stage;
    record.step = step.record.step;
    record.prompt = group.prompt.text;
    record.answer = group.prompt.answer;
    record.serial = group.prompt.serial;
    for (size_t i = 0; i < group.completions.size() && count > 0; ++i, --count) {
      const Completion& completion = group.completions[i];
      CompletionEntry entry;
      entry.text = completion.text;
      entry.advantage = advantages[g][i];
      entry.finish_reason = completion.finish_reason;
      entry.error = completion.error;
      for (size_t k = 0; k < completion.rewards.size() && k < reward_names.size(); ++k)
        entry.rewards.emplace_back(reward_names[k], completion.rewards[k]);
      record.completions.push_back(std::move(entry));
    }
    completions_->write(record);
  }
}

std::shared_ptr<void> RunDirectory::watch_hub(std::function<RunStatus::Hub()> figures) {
  if (!leads_) return nullptr;
  status_->watch_hub(std::move(figures));
  return {status_.get(), [](StatusFile* status) { status->watch_hub({}); }};
}

void RunDirectory::saved(int64_t step, bool good) {
  if (!leads_) return;
  status_->saved(step, good);
  if (prometheus_) prometheus_->saved(good);
}

void RunDirectory::end_stage() {
  if (leads_) progress_->end_stage();
}

void RunDirectory::end(RunPhase phase, int exit_code, const std::string& error) {
  if (!error.empty()) log_to_file(LogLevel::kError, error);
  if (leads_) status_->end(phase, exit_code, error);
}

}  // namespace temper
