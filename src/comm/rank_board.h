// Where each rank writes what it has begun, for the others to read when something is late: a small file a rank, in a
// folder that all ranks see. It is a way round the very communication that may be stuck. The first rank watches: an
// operation that takes long is reported, once, with the ranks that have not begun it and what they did last.
#pragma once
#include <chrono>
#include <deque>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/communicator.h"

namespace temper {

// What a rank's file says.
struct RankSign {
  int64_t sequence = -1;  // the operation begun last; -1: none yet
  std::string name;       // of that operation
  double time = 0;        // when it was begun, or the file made; seconds since the Unix epoch, by that machine's clock
  std::string host;
  int64_t pid = 0;
  char process_state = '?';  // as core/process.h; '?' too where it is another machine's
  bool on_this_host = false;
};
// Nothing: that rank has no file (yet). For who looks from outside; any process.
std::optional<RankSign> read_rank_sign(const std::string& folder, int rank);

class RankBoard {
 public:
  // Makes FOLDER/rank_N.status. late_after: when the first rank speaks up; 0: never. IoError.
  RankBoard(const std::string& folder, int rank, int size, std::chrono::milliseconds late_after);
  ~RankBoard();
  RankBoard(const RankBoard&) = delete;
  RankBoard& operator=(const RankBoard&) = delete;

  void begun(const std::shared_ptr<CommOperation>& operation);

  // The ranks that have not begun this operation, or began it and do not run any more, with what each did last and
  // whether its process still runs: "rank 1 (last: "metrics", operation 11, 75 s ago; its process is stopped)". Empty:
  // all have, and run.
  std::string describe_missing(int64_t sequence) const;

 private:
  void write(int64_t sequence, const std::string& name);
  void watch();

  std::string folder_;
  int rank_, size_;
  std::chrono::milliseconds late_after_;
  int file_ = -1;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::deque<std::weak_ptr<CommOperation>> under_way_;  // guarded by mutex_; only where somebody watches
  bool stop_ = false;                                   // guarded by mutex_
  std::thread watcher_;
};

}  // namespace temper
