// temper checkpoint ls|info|verify|export|reshard PATH.
#include <algorithm>
#include <filesystem>
#include <iostream>
#include <memory>
#include <mutex>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/export_model.h"
#include "apps/run_checkpoints.h"
#include "checkpoint/inspect.h"
#include "checkpoint/reshard.h"
#include "core/error.h"
#include "observe/progress.h"

namespace temper {
namespace {

// Shows how much has been read, where that takes a while.
class ShownFileSystem : public FileSystem {
 public:
  void show(const std::string& what, int64_t total_bytes) {
    constexpr int64_t kWorthShowing = 256 << 20;
    if (total_bytes < kWorthShowing) return;
    progress_ = std::make_unique<Progress>();
    record_.stage = what + " (MB)";
    total_mb_ = total_bytes / kMegabyte;
    progress_->begin_stage(record_.stage, total_mb_);
  }
  void end() {
    if (progress_) progress_->end_stage();
    progress_.reset();
  }

  ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset) override {
    const ssize_t count = FileSystem::pread(descriptor, data, size_bytes, offset);
    const std::lock_guard lock(mutex_);
    if (!progress_ || count <= 0) return count;
    read_bytes_ += count;
    record_.step = std::min(total_mb_, read_bytes_ / kMegabyte);
    progress_->update(record_);
    return count;
  }

 private:
  static constexpr int64_t kMegabyte = 1000 * 1000;
  std::mutex mutex_;  // files are read by several threads
  std::unique_ptr<Progress> progress_;
  MetricRecord record_;
  int64_t total_mb_ = 0, read_bytes_ = 0;
};

int64_t data_bytes(const std::vector<std::string>& checkpoints) {
  int64_t sum = 0;
  std::error_code none;
  for (const std::string& checkpoint : checkpoints)
    for (const auto& entry : std::filesystem::directory_iterator(checkpoint, none))
      if (entry.path().extension() == ".h5") sum += static_cast<int64_t>(entry.file_size(none));
  return sum;
}

// A run directory says where its other tiers are; any other path is looked at as it is.
std::string list(FileSystem& files, const std::string& path) {
  const auto status = read_run_status(path + "/status.json");
  if (!status) return list_checkpoints(files, path);
  const std::vector<TierCheckpoints> tiers = find_run_checkpoints(path, status);
  std::string out;
  for (const TierCheckpoints& tier : tiers) {
    const int64_t lag = lag_steps(tier, tiers);
    if (tier.all.empty()) out += format("{}  stage {}: no checkpoint, {} steps behind\n", tier.tier, tier.stage, lag);
    bool newest = true;
    for (const CheckpointInfo& info : tier.all) {
      std::string line = list_checkpoints(files, info.path);
      line.pop_back();
      out += format("{}  {}{}\n", tier.tier, line, newest && lag > 0 ? format("  {} steps behind", lag) : "");
      newest = false;
    }
  }
  if (out.empty()) throw IoError("{}: there is no checkpoint of this run. Has it saved one?", path);
  return out;
}

std::string required_out(const CommandLine& line, const std::string& action, const char* what) {
  if (!line.given("out")) throw ConfigError("checkpoint {}: say with --out=DIR where to put the {}.", action, what);
  return line.text("out");
}

std::string reshard(ShownFileSystem& files, const CommandLine& line) {
  const std::string out = required_out(line, "reshard", "new checkpoint");
  const std::string from = find_checkpoints(files, line.text("PATH")).front();
  const std::string to = out + "/" + base_name(from);
  const auto num_shards = static_cast<int>(line.integer("shards", 1, 1 << 16));
  files.show("reshard", data_bytes({from}));
  reshard_checkpoint(files, from, to, num_shards);
  return to;
}

std::string export_model(ShownFileSystem& files, const CommandLine& line) {
  const std::string to = required_out(line, "export", "model");
  const std::string from = find_checkpoints(files, line.text("PATH")).front();
  ExportOptions options;
  if (line.given("model")) options.origin = line.text("model");
  const std::string dtype = line.one_of("dtype", {"auto", "f32", "bf16"});
  if (dtype != "auto") options.dtype = dtype == "f32" ? at::kFloat : at::kBFloat16;
  constexpr int64_t kShareOfWeights = 3;  // beside both moments
  files.show("export", data_bytes({from}) / kShareOfWeights);
  export_checkpoint(files, from, to, options);
  return to;
}

}  // namespace

int run_checkpoint(int argc, char** argv) {
  CommandLine line(
      "checkpoint",
      "ls lists checkpoints, of a run directory in all tiers; info describes them, verify reads every byte,\n"
      "export writes the model as a Hugging Face directory, reshard writes a checkpoint anew in another number\n"
      "of files.\n"
      "PATH is a checkpoint, a stage's folder of them, a checkpoints folder, or a run directory (info, export\n"
      "and reshard take the first that ls shows of its local ones).",
      "ls|info|verify|export|reshard PATH");
  line.add_positional("ACTION");
  line.add_positional("PATH");
  line.add_option("out", "DIR",
                  "export: folder to make; reshard: folder in which the new checkpoint is made, under the old one's "
                  "name");
  line.add_option("shards", "N", "reshard: number of shards", "1");
  line.add_option("dtype", "auto|f32|bf16", "export: type of the weights; auto: as the run itself exports", "auto");
  line.add_option("model", "DIR",
                  "export: the model directory that the run started from, for its tokenizer, where it is no longer at "
                  "its [model] path");
  if (!line.parse(argc, argv)) return 0;

  const std::string action = line.one_of("ACTION", {"ls", "info", "verify", "export", "reshard"});
  const std::string path = line.text("PATH");
  ShownFileSystem files;
  if (action == "ls") {
    std::cout << list(files, path);
  } else if (action == "info") {
    std::cout << describe_checkpoint(files, path);
  } else if (action == "reshard" || action == "export") {
    const std::string made = action == "export" ? export_model(files, line) : reshard(files, line);
    files.end();
    std::cout << made << "\n";
  } else {
    files.show("verify", data_bytes(find_checkpoints(files, path)));
    const VerifyReport report = verify_checkpoints(files, path);
    files.end();
    std::cout << report.text;
    if (!report.good) return static_cast<int>(ExitCode::kFormat);
  }
  return 0;
}

}  // namespace temper
