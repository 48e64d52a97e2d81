// Saves in the background. The caller's thread copies the state into staging buffers, allocated once and used again,
// and goes on; a thread of low priority writes and commits the copy through the store, which with several ranks is a
// collective call of their writers. Used by the train loop's thread.
#pragma once
#include <condition_variable>
#include <exception>
#include <mutex>
#include <thread>

#include "checkpoint/checkpoint.h"

namespace temper {

class CheckpointWriter {
 public:
  // From here on the store is this writer's: its communicator is called by the writer's thread alone.
  explicit CheckpointWriter(CheckpointStore& store);
  ~CheckpointWriter();  // waits for the save under way; what it throws is logged
  CheckpointWriter(const CheckpointWriter&) = delete;
  CheckpointWriter& operator=(const CheckpointWriter&) = delete;

  // A save was begun, and finish() has not been called since.
  bool busy() const { return busy_; }
  // The thread has ended it, well or not: finish() returns at once.
  bool ended() const;

  // Copies the state, whose tensors may be on any device, and returns; it may change then. REQUIRES: !busy().
  void begin(const CheckpointState& state);
  // Waits for the end of the save under way, and throws what store.save() threw. REQUIRES: busy().
  void finish();

  int64_t staging_bytes() const { return staging_.defined() ? staging_.numel() : 0; }

 private:
  void copy(const std::vector<TensorEntry>& tensors);
  void work();

  CheckpointStore& store_;
  at::Tensor staging_;     // u8
  CheckpointState state_;  // its tensors are views of staging_; the thread's while a save is under way
  bool busy_ = false;      // the caller's thread's
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool begun_ = false, stop_ = false;  // guarded by mutex_
  std::exception_ptr failure_;         // guarded by mutex_
  std::thread thread_;                 // last: it uses all of the above
};

}  // namespace temper
