#include "checkpoint/paced_file_system.h"

#include <algorithm>

namespace temper {

ssize_t PacedFileSystem::pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) {
  if (bytes_per_s_ > 0) wait_for_turn(size_bytes);
  return FileSystem::pwrite(descriptor, data, size_bytes, offset);
}

// Each write takes its time from the common clock; what was not used while nothing was written is not saved up.
void PacedFileSystem::wait_for_turn(size_t size_bytes) {
  std::unique_lock lock(mutex_);
  const std::chrono::duration<double> takes(static_cast<double>(size_bytes) / static_cast<double>(bytes_per_s_));
  const auto begin = std::max(next_, std::chrono::steady_clock::now());
  next_ = begin + std::chrono::duration_cast<std::chrono::steady_clock::duration>(takes);
  hurried_.wait_until(lock, begin, [this] { return num_hurrying_ > 0; });
}

void PacedFileSystem::change_hurry(int by) {
  const std::lock_guard lock(mutex_);
  num_hurrying_ += by;
  next_ = {};
  hurried_.notify_all();
}

}  // namespace temper
