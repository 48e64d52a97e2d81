// When and where a stage's checkpoints are saved, in the background: to RAM, to the local disk, from there to the
// durable folder; what failed and what is late. All ranks call the same functions at the same steps. Used by the
// stage's thread.
#pragma once
#include <functional>
#include <optional>
#include <string>

#include "checkpoint/paced_file_system.h"
#include "checkpoint/tiers.h"
#include "checkpoint/writer.h"
#include "config/config.h"
#include "core/metric_record.h"
#include "trainer/ranks.h"

namespace temper {

class StageSaver {
 public:
  enum class Tier { kRam, kLocal };
  // on_save: a checkpoint was written, or failed.
  // files: the tiers' own.
  StageSaver(PacedFileSystem& files, CheckpointTiers& tiers, const CheckpointSection& config, const Ranks& ranks,
             std::function<void(int64_t step, Tier tier, bool good)> on_save);

  ~StageSaver();  // waits for what is under way

  // The newest checkpoint on the local disk that was saved here; -1: none.
  int64_t newest_local() const { return local_.newest; }
  // Whether a save is due after this step. final: the stage or the process ends.
  bool due(int64_t step, bool final) const;
  // The state of a step for which due() holds is copied; it goes to its tiers while the next steps are taken. Where a
  // local save is under way, one for RAM alone is left out, another waits.
  void save(const std::function<CheckpointState()>& state, int64_t step, bool final);
  // Of saves and copies that have ended meanwhile.
  void finish_ended();
  // Waits for all of them. IoError where the last local save failed.
  void finish_all();

  // What there is to tell, at each step: lag and failures by tier, the last save's blocking.
  void add_metrics(int64_t step, MetricRecord& record);

 private:
  struct Progress {
    int64_t newest = -1;  // step of the newest checkpoint; -1: none by this process
    int64_t failed = 0;
    int64_t skipped = 0;
  };

  SaveTargets targets_at(int64_t step, bool final) const;
  bool durable_due(int64_t step, bool final) const;
  void finish_save(bool must_succeed);
  void note_partners();
  void note_local_failure(const std::string& failure, bool must_succeed);
  void begin_copy(int64_t step, bool must_begin);
  void finish_copy();

  PacedFileSystem& files_;
  CheckpointTiers& tiers_;
  const CheckpointSection& config_;
  Ranks ranks_;
  std::function<void(int64_t, Tier, bool)> on_save_;

  int64_t saving_step_ = 0;  // whose save is under way
  SaveTargets targets_;      // of it
  bool copy_wanted_ = false, final_ = false;
  SaveReport report_;  // the writer's thread's while a save is under way
  int64_t copying_step_ = 0;
  int failed_in_a_row_ = 0;
  Progress ram_, local_, durable_, partners_;
  std::optional<PacedFileSystem::Hurry> ending_;  // outlives the two below
  double blocked_s_ = -1;                         // by the last save; -1: told already
  CheckpointWriter writer_;
  BackgroundTask copier_{"the copy of the last checkpoint to checkpoint.durable_dir"};
};

}  // namespace temper
