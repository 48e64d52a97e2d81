// Everything a stage needs, made from its configuration: models, data, engine and rewards, optimisers, algorithm,
// checkpoints; wired, run, exported. Apps' half of a stage: the trainer never sees engine or files.
#pragma once
#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "apps/run_directory.h"
#include "config/config.h"
#include "trainer/stage.h"

namespace temper {

class StageSession {
 public:
  // start: directory of the model to start from; empty: [model] init. It is also the default reference, the same
  // directory on resume.
  // check_workers: see HubSource; for stages with rollout workers.
  StageSession(const StageConfig& stage, const std::string& start, RunDirectory& run, const std::string& config_toml,
               PolicyVersion first_version, const Ranks& ranks, std::function<void()> check_workers);
  ~StageSession();

  // Takes the newest verified checkpoint of this stage (or the given one), the same on all ranks. Nothing: starts at
  // step 0.
  std::optional<int64_t> resume(const std::string& checkpoint);
  // Once the stage's result is safe: its checkpoints in memory go.
  void release_memory();
  StageOutcome run();

  // The first rank writes an HF directory in f32, or in the given dtype; it is there for all when this returns.
  void export_model(const std::string& path, at::ScalarType dtype) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace temper
