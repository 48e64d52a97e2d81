#include "checkpoint/background.h"

#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <unistd.h>

#include <utility>

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int kNiceness = 10;  // the cores are for the training

}  // namespace

BackgroundTask::BackgroundTask(std::string what) : what_(std::move(what)), thread_([this] { work(); }) {}

BackgroundTask::~BackgroundTask() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  thread_.join();
  if (!failure_) return;
  try {
    std::rethrow_exception(failure_);
  } catch (const std::exception& error) {
    log_error("{} failed: {}", what_, error.what());
  }
}

bool BackgroundTask::ended() const {
  const std::lock_guard lock(mutex_);
  return !task_;
}

void BackgroundTask::begin(std::function<void()> task) {
  TEMPER_CHECK(!busy_, "{} is under way", what_);
  busy_ = true;
  const std::lock_guard lock(mutex_);
  task_ = std::move(task);
  changed_.notify_all();
}

void BackgroundTask::finish() {
  TEMPER_CHECK(busy_, "{} is not under way", what_);
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !task_; });
  busy_ = false;
  if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
}

// produces: what the task does; consumes: tasks; waits for: begin(), and what the task waits for; is unblocked by:
// these, or the destructor.
void BackgroundTask::work() {
  at::set_num_threads(1);
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);  // of this thread alone, and those it makes
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return task_ || stop_; });
    if (!task_) return;
    lock.unlock();
    std::exception_ptr failure;
    try {
      task_();
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    failure_ = failure;
    task_ = nullptr;
    changed_.notify_all();
  }
}

}  // namespace temper
