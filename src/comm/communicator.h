// Collective operations among the ranks of a training world, whatever carries them: threads of one process
// (thread_communicator.h), MPI processes (mpi_communicator.h), NCCL between GPUs (nccl_communicator.h). Each operation
// starts at once and is waited for through its handle, so that communication hides behind computation; several may be
// under way. All ranks call the same operations in the same order. One thread calls a communicator; abort() alone may
// come from any.
#pragma once
#include <ATen/core/Tensor.h>

#include <chrono>
#include <condition_variable>
#include <cstdint>
#include <memory>
#include <mutex>
#include <string>
#include <vector>

namespace temper {

enum class ReduceOp : uint8_t { kSum, kMax, kMin };
enum class CommKind : uint8_t { kAllReduce, kReduceScatter, kAllGather, kAllToAll, kBroadcast, kBarrier };

struct CommOptions {
  std::chrono::milliseconds timeout{600000};  // of one operation, from its start on this rank
  // Ranks compare name, kind, type and size of every operation before it runs: a call out of step is named, not hung.
  bool check_agreement = false;
};

// One operation of one rank, from its start to its end. Back ends fill it in; callers hold a CommHandle.
class CommOperation {
 public:
  CommKind kind = CommKind::kBarrier;
  ReduceOp op = ReduceOp::kSum;
  std::string name;  // given by the caller, for messages
  int64_t sequence = 0;
  int rank = 0, root = 0;
  at::Tensor in, out;  // kept alive until the end; the same tensor where the operation is in place
  std::chrono::steady_clock::time_point started, deadline;

  int64_t size_bytes() const { return in.defined() ? static_cast<int64_t>(in.nbytes()) : 0; }
  std::string describe() const;  // "all_reduce "gradients" (operation 12, 4096 bytes) of rank 1"

  void finish();
  void fail(const std::string& why);  // keeps the first reason
  bool done() const;
  // False: the time is up. CommError where it failed.
  bool wait_until(std::chrono::steady_clock::time_point time);

 private:
  mutable std::mutex mutex_;
  std::condition_variable changed_;
  bool done_ = false;    // guarded by mutex_
  std::string failure_;  // guarded by mutex_
};

class Communicator;
class RankBoard;

// Waiting is for the operation's end on this rank: the result is there, the inputs may be written.
class CommHandle {
 public:
  CommHandle() = default;  // nothing to wait for
  CommHandle(std::shared_ptr<CommOperation> operation, Communicator& communicator)
      : operation_(std::move(operation)), communicator_(&communicator) {}

  // CommError when the deadline passes (the communicator is aborted then), a rank is gone, or someone aborted.
  void wait();
  bool done() const { return !operation_ || operation_->done(); }

 private:
  std::shared_ptr<CommOperation> operation_;  // shared with the back end that carries it out
  Communicator* communicator_ = nullptr;
};

class Communicator {
 public:
  virtual ~Communicator();
  Communicator(const Communicator&) = delete;
  Communicator& operator=(const Communicator&) = delete;

  int rank() const { return rank_; }
  int size() const { return size_; }

  // Tensors are contiguous, of one dtype (f64, f32, bf16, i64, i32, u8) and of equal sizes on all ranks.
  // In place: every rank's tensor becomes the sum (maximum, minimum). The order of the sum is the back end's own, the
  // same from run to run.
  CommHandle all_reduce(const std::string& name, const at::Tensor& tensor, ReduceOp op = ReduceOp::kSum);
  // in [size() · n] → out [n]: the reduced part of this rank. out may be that part of in.
  CommHandle reduce_scatter(const std::string& name, const at::Tensor& in, const at::Tensor& out,
                            ReduceOp op = ReduceOp::kSum);
  // in [n] → out [size() · n], in the order of the ranks. in may be this rank's part of out.
  CommHandle all_gather(const std::string& name, const at::Tensor& in, const at::Tensor& out);
  // in [size() · n] → out [size() · n]: part r of in goes to rank r.
  CommHandle all_to_all(const std::string& name, const at::Tensor& in, const at::Tensor& out);
  CommHandle broadcast(const std::string& name, const at::Tensor& tensor, int root);
  void barrier(const std::string& name);

  // What every rank has to say, in the order of the ranks; texts may differ in length.
  std::vector<std::string> gather_texts(const std::string& name, const std::string& text);

  // The ranks with one color become a communicator of their own, ordered by (key, rank here).
  virtual std::unique_ptr<Communicator> split(int color, int key) = 0;
  // The same for tensors of the host alone, where that costs less: texts, files.
  virtual std::unique_ptr<Communicator> split_for_host(int color, int key) { return split(color, key); }

  // Every operation under way and to come fails with this reason, here and, as far as the back end reaches, elsewhere.
  virtual void abort(const std::string& why) = 0;

  // Each operation is noted on the board from now on. The world's own; not for what split() made.
  void set_board(std::unique_ptr<RankBoard> board);

  // Who has not begun the operation yet, as far as the back end or the board knows; else empty.
  std::string late_ranks(const CommOperation& operation) const;
  // What to say of an operation whose time is up.
  std::string late_text(const CommOperation& operation) const;

 protected:
  Communicator(int rank, int size, const CommOptions& options);

  // Carries the operation out and ends it with finish() or fail(). Called in order of the sequence numbers.
  virtual void start(const std::shared_ptr<CommOperation>& operation) = 0;
  // Has another communicator of the same ranks carry out an operation of this one.
  static void start_on(Communicator& other, const std::shared_ptr<CommOperation>& operation);
  // "ranks 1 and 3"; empty where the back end does not know.
  virtual std::string missing_ranks(const CommOperation&) const { return {}; }

  const CommOptions& options() const { return options_; }

 private:
  CommHandle begin(CommKind kind, const std::string& name, const at::Tensor& in, const at::Tensor& out, ReduceOp op,
                   int root);
  void check_agreement(const CommOperation& operation);

  int rank_, size_;
  CommOptions options_;
  std::unique_ptr<RankBoard> board_;
  int64_t next_sequence_ = 0;
  bool checking_ = false;  // the comparison's own operations are not compared
};

// Back ends' helper: target = target (op) source, element by element, in the order of the calls.
void reduce_into(const at::Tensor& target, const at::Tensor& source, ReduceOp op);
std::string join_ranks(const std::vector<int>& ranks);  // "rank 1", "ranks 1, 2 and 4"

}  // namespace temper
