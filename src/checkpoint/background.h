// One task at a time on a thread of low priority beside the training: what writes and copies checkpoints. Used by one
// thread.
#pragma once
#include <condition_variable>
#include <exception>
#include <functional>
#include <mutex>
#include <string>
#include <thread>

namespace temper {

class BackgroundTask {
 public:
  explicit BackgroundTask(std::string what);  // it does, for messages: "the last checkpoint"
  ~BackgroundTask();                          // waits for the task under way; what it throws is logged
  BackgroundTask(const BackgroundTask&) = delete;
  BackgroundTask& operator=(const BackgroundTask&) = delete;

  // A task was begun, and finish() has not been called since.
  bool busy() const { return busy_; }
  // The thread has ended it, well or not: finish() returns at once.
  bool ended() const;

  // REQUIRES: !busy().
  void begin(std::function<void()> task);
  // Waits for the end of the task under way, and throws what it threw. REQUIRES: busy().
  void finish();

 private:
  void work();

  const std::string what_;
  bool busy_ = false;  // the caller's thread's
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  std::function<void()> task_;  // guarded by mutex_; empty: none under way
  bool stop_ = false;           // guarded by mutex_
  std::exception_ptr failure_;  // guarded by mutex_
  std::thread thread_;          // last: it uses all of the above
};

}  // namespace temper
