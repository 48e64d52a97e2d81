#include "comm/rank_board.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "core/clock.h"
#include "core/error.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

// What a status file holds, written in one piece.
struct Status {
  int64_t sequence = -1;  // the operation begun last
  double time = 0;        // when, seconds since 1970
  int64_t pid = 0;
  char host[64] = {};
  char name[96] = {};
};

std::string path_of(const std::string& folder, int rank) { return format("{}/rank_{}.status", folder, rank); }

// Empty where the process runs, or is another machine's.
std::string why_halted(const RankSign& sign) {
  if (!sign.on_this_host) return "";
  switch (sign.process_state) {
    case 'T':
    case 't':
      return "its process is stopped";
    case '?':
    case 'Z':
    case 'X':
      return "its process is gone";
    default:
      return "";
  }
}

std::string describe(const RankSign& sign) {
  if (sign.sequence < 0) return "which has begun nothing yet";
  const std::string where = sign.on_this_host ? why_halted(sign) : format("on {}", sign.host);
  return format("last: \"{}\", operation {}, {} s ago{}{}", sign.name, sign.sequence,
                static_cast<int64_t>(seconds_since_epoch() - sign.time), where.empty() ? "" : "; ", where);
}

}  // namespace

std::optional<RankSign> read_rank_sign(const std::string& folder, int rank) {
  Status status;
  const int file = open(path_of(folder, rank).c_str(), O_RDONLY | O_CLOEXEC);
  const bool read_it = file >= 0 && pread(file, &status, sizeof status, 0) == static_cast<ssize_t>(sizeof status);
  if (file >= 0) close(file);
  if (!read_it) return std::nullopt;
  status.host[sizeof status.host - 1] = status.name[sizeof status.name - 1] = '\0';  // whatever wrote it
  RankSign sign{status.sequence, status.name, status.time, status.host, status.pid};
  sign.on_this_host = sign.host == host_name().substr(0, sizeof status.host - 1);
  if (sign.on_this_host) sign.process_state = process_state(sign.pid);
  return sign;
}

RankBoard::RankBoard(const std::string& folder, int rank, int size, std::chrono::milliseconds late_after)
    : folder_(folder), rank_(rank), size_(size), late_after_(late_after) {
  const std::string path = path_of(folder, rank);
  file_ = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (file_ < 0)
    throw IoError("{}: cannot be written ({}). Check the folder's permissions.", path, std::strerror(errno));
  write(-1, "");
  if (rank_ == 0 && late_after_.count() > 0) watcher_ = std::thread([this] { watch(); });
}

RankBoard::~RankBoard() {
  {
    const std::lock_guard lock(mutex_);
    stop_ = true;
    changed_.notify_all();
  }
  if (watcher_.joinable()) watcher_.join();
  close(file_);
}

void RankBoard::write(int64_t sequence, const std::string& name) {
  Status status;
  status.sequence = sequence;
  status.time = seconds_since_epoch();
  status.pid = getpid();
  std::strncpy(status.host, host_name().c_str(), sizeof status.host - 1);
  std::strncpy(status.name, name.c_str(), sizeof status.name - 1);
  // Help for a person, no more: a disk that is full must not end a run.
  [[maybe_unused]] const ssize_t written = pwrite(file_, &status, sizeof status, 0);
}

void RankBoard::begun(const std::shared_ptr<CommOperation>& operation) {
  write(operation->sequence, operation->name);
  if (!watcher_.joinable()) return;
  const std::lock_guard lock(mutex_);
  while (!under_way_.empty() && (under_way_.front().expired() || under_way_.front().lock()->done()))
    under_way_.pop_front();
  under_way_.push_back(operation);
}

std::string RankBoard::describe_missing(int64_t sequence) const {
  std::string text;
  for (int r = 0; r < size_; ++r) {
    const std::optional<RankSign> sign = read_rank_sign(folder_, r);
    if (sign && sign->sequence >= sequence && why_halted(*sign).empty()) continue;
    if (!text.empty()) text += ", ";
    text += format("rank {} ({})", r, sign ? describe(*sign) : "which has begun nothing yet");
  }
  return text;
}

// produces: warnings; consumes: operations under way; waits for: the clock; is unblocked by: the destructor.
void RankBoard::watch() {
  int64_t reported = -1;
  std::unique_lock lock(mutex_);
  while (!changed_.wait_for(lock, std::min(late_after_, std::chrono::milliseconds(1000)), [this] { return stop_; })) {
    std::shared_ptr<CommOperation> oldest;  // kept alive while it is looked at
    for (const auto& weak : under_way_) {
      oldest = weak.lock();
      if (oldest && !oldest->done()) break;
      oldest.reset();
    }
    if (!oldest || oldest->sequence == reported) continue;
    const auto waited = std::chrono::steady_clock::now() - oldest->started;
    if (waited < late_after_) continue;
    reported = oldest->sequence;
    lock.unlock();
    const std::string missing = describe_missing(oldest->sequence);
    log_warning("{} has been under way for {} s; {}", oldest->describe(),
                std::chrono::duration_cast<std::chrono::seconds>(waited).count(),
                missing.empty() ? "all ranks have begun it" : "held up by " + missing);
    lock.lock();
  }
}

}  // namespace temper
