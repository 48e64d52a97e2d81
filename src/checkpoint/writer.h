// Saves in the background. The caller's thread copies the state into staging buffers, allocated once and used again,
// and goes on; a thread of low priority writes and commits the copy, which with several ranks is a collective call of
// their writers. Used by the train loop's thread.
#pragma once
#include <functional>

#include "checkpoint/background.h"
#include "checkpoint/checkpoint.h"

namespace temper {

class CheckpointWriter {
 public:
  // From here on the store is this writer's: its communicator is called by the writer's thread alone.
  explicit CheckpointWriter(CheckpointStore& store);
  // save: what the thread does with the copy.
  using Save = std::function<void(const CheckpointState&)>;
  explicit CheckpointWriter(Save save);

  // As BackgroundTask. The destructor waits for the save under way; what it throws is logged.
  bool busy() const { return task_.busy(); }
  bool ended() const { return task_.ended(); }

  // Copies the state, whose tensors may be on any device, and returns; it may change then. REQUIRES: !busy().
  void begin(const CheckpointState& state);
  // Waits for the end of the save under way, and throws what it threw. REQUIRES: busy().
  void finish() { task_.finish(); }

  int64_t staging_bytes() const { return staging_.defined() ? staging_.numel() : 0; }

 private:
  void copy(const std::vector<TensorEntry>& tensors);

  const Save save_;
  at::Tensor staging_;     // u8
  CheckpointState state_;  // its tensors are views of staging_; the thread's while a save is under way
  BackgroundTask task_{"the last checkpoint"};  // last: it uses all of the above
};

}  // namespace temper
