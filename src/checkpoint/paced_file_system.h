// A file system that writes no faster than it is told, all its users together: what is saved in the background leaves
// disk and memory bandwidth to the training. Any thread.
#pragma once
#include <chrono>
#include <condition_variable>
#include <mutex>

#include "checkpoint/file_system.h"

namespace temper {

class PacedFileSystem : public FileSystem {
 public:
  explicit PacedFileSystem(int64_t bytes_per_s = 0) : bytes_per_s_(bytes_per_s) {}  // 0: no limit
  ssize_t pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) override;

  // While one lives nothing is held up: somebody waits for what is written.
  class Hurry {
   public:
    explicit Hurry(PacedFileSystem& files) : files_(files) { files_.change_hurry(1); }
    ~Hurry() { files_.change_hurry(-1); }
    Hurry(const Hurry&) = delete;
    Hurry& operator=(const Hurry&) = delete;

   private:
    PacedFileSystem& files_;
  };

 private:
  void change_hurry(int by);
  void wait_for_turn(size_t size_bytes);

  const int64_t bytes_per_s_;
  std::mutex mutex_;
  int num_hurrying_ = 0;                        // guarded by mutex_
  std::chrono::steady_clock::time_point next_;  // guarded by mutex_: when the next write may begin
  std::condition_variable hurried_;
};

}  // namespace temper
