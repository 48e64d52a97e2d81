#include "trainer/saver.h"

#include <utility>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int kMaxFailedSaves = 3;  // in a row, then the run ends

bool is_due(int64_t step, int64_t every_steps) { return every_steps > 0 && step % every_steps == 0; }

}  // namespace

StageSaver::StageSaver(PacedFileSystem& files, CheckpointTiers& tiers, const CheckpointSection& config,
                       const Ranks& ranks, std::function<void(int64_t, Tier, bool)> on_save)
    : files_(files),
      tiers_(tiers),
      config_(config),
      ranks_(ranks),
      on_save_(std::move(on_save)),
      writer_([this](const CheckpointState& state) { report_ = tiers_.save(state, targets_); }) {}

StageSaver::~StageSaver() { ending_.emplace(files_); }

bool StageSaver::durable_due(int64_t step, bool final) const {
  return tiers_.has_durable() && (final || is_due(step, config_.durable_every_steps));
}

SaveTargets StageSaver::targets_at(int64_t step, bool final) const {
  SaveTargets targets;
  targets.local = final || is_due(step, config_.local_every_steps) || durable_due(step, final);
  targets.ram = !targets.local && tiers_.has_ram() && is_due(step, config_.ram_every_steps);
  return targets;
}

bool StageSaver::due(int64_t step, bool final) const { return targets_at(step, final).any(); }

void StageSaver::save(const std::function<CheckpointState()>& state, int64_t step, bool final) {
  const Stopwatch watch;
  const SaveTargets targets = targets_at(step, final);
  if (writer_.busy() && !targets.local) {
    ++ram_.skipped;
    return;
  }
  if (writer_.busy()) finish_save(/*must_succeed=*/false);
  targets_ = targets;
  saving_step_ = step;
  copy_wanted_ = durable_due(step, final);
  final_ = final;
  writer_.begin(state());
  blocked_s_ = watch.seconds();
}

// All ranks at the same step: they fail alike.
void StageSaver::finish_ended() {
  if (writer_.busy() && !ranks_.any(!writer_.ended())) finish_save(/*must_succeed=*/false);
  if (copier_.busy() && !ranks_.any(!copier_.ended())) finish_copy();
}

void StageSaver::finish_all() {
  if (writer_.busy()) finish_save(/*must_succeed=*/final_);
  if (copier_.busy()) finish_copy();
}

void StageSaver::finish_save(bool must_succeed) {
  const PacedFileSystem::Hurry waiting(files_);
  std::string failure;  // the same on all ranks
  try {
    writer_.finish();
  } catch (const IoError& error) {
    failure = error.what();
  }
  if (targets_.local) {
    on_save_(saving_step_, Tier::kLocal, failure.empty());
    if (!failure.empty()) return note_local_failure(failure, must_succeed);
    failed_in_a_row_ = 0;
    local_.newest = saving_step_;
    note_partners();
    if (copy_wanted_) begin_copy(saving_step_, final_);
    return;
  }
  on_save_(saving_step_, Tier::kRam, report_.ram.empty());
  if (report_.ram.empty()) {
    ram_.newest = saving_step_;
    return note_partners();
  }
  ++ram_.failed;
  log_error("checkpoint of step {} is not in the RAM tier, training goes on: {}", saving_step_, report_.ram);
}

void StageSaver::note_partners() {
  if (!tiers_.has_partners()) return;
  if (report_.partners.empty()) {
    partners_.newest = saving_step_;
    return;
  }
  ++partners_.failed;
  log_error("checkpoint of step {} is not on a partner node, training goes on: {}", saving_step_, report_.partners);
}

void StageSaver::note_local_failure(const std::string& failure, bool must_succeed) {
  ++local_.failed;
  if (must_succeed || ++failed_in_a_row_ >= kMaxFailedSaves) throw IoError("{}", failure);
  log_error("checkpoint of step {} failed ({} of {} in a row before the run ends): {}", saving_step_, failed_in_a_row_,
            kMaxFailedSaves, failure);
}

// produces: a copy in the durable folder; consumes: the local checkpoint, pinned meanwhile.
void StageSaver::begin_copy(int64_t step, bool must_begin) {
  if (copier_.busy() && must_begin) finish_copy();
  if (copier_.busy()) {
    ++durable_.skipped;
    log_warning(
        "checkpoint of step {} is not copied to checkpoint.durable_dir: the copy of step {} is still under way.", step,
        copying_step_);
    return;
  }
  copying_step_ = step;
  tiers_.pin(step);
  copier_.begin([this, step] { tiers_.copy_to_durable(step); });
}

// A durable folder that is full or gone costs safety, not the run.
void StageSaver::finish_copy() {
  const PacedFileSystem::Hurry waiting(files_);
  std::string failure;
  try {
    copier_.finish();
  } catch (const IoError& error) {
    failure = error.what();
  } catch (const FormatError& error) {
    failure = error.what();
  }
  tiers_.unpin();
  if (failure.empty()) {
    durable_.newest = copying_step_;
    return;
  }
  ++durable_.failed;
  log_error("checkpoint of step {} is not in checkpoint.durable_dir, training goes on: {}", copying_step_, failure);
}

void StageSaver::add_metrics(int64_t step, MetricRecord& record) {
  if (blocked_s_ >= 0) record.set("timing_s/save_checkpoint_blocked", std::exchange(blocked_s_, -1));
  const bool several = tiers_.has_ram() || tiers_.has_durable() || tiers_.has_partners();
  const auto add = [&](const std::string& prefix, const Progress& tier) {
    if (tier.newest >= 0) record.set(prefix + "lag_steps", static_cast<double>(step - tier.newest));
    record.set(prefix + "failed_saves", static_cast<double>(tier.failed));
    record.set(prefix + "skipped_saves", static_cast<double>(tier.skipped));
  };
  if (tiers_.has_ram()) add("checkpoint/ram/", ram_);
  if (tiers_.has_durable()) add("checkpoint/durable/", durable_);
  if (tiers_.has_partners()) add("checkpoint/partner/", partners_);
  if (several && local_.newest >= 0)
    record.set("checkpoint/local/lag_steps", static_cast<double>(step - local_.newest));
  if (local_.newest >= 0 || local_.failed > 0)
    record.set("checkpoint/failed_saves", static_cast<double>(local_.failed));
}

}  // namespace temper
