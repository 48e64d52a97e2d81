#include "checkpoint/writer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cstring>

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int kNiceness = 10;             // the writer's: the cores are for the training
constexpr int64_t kAlignment = 64;        // of a tensor in the staging buffer
constexpr int64_t kPieceBytes = 4 << 20;  // that one thread copies at a time

struct Piece {
  char* to;
  const char* from;
  int64_t size_bytes;
};

}  // namespace

CheckpointWriter::CheckpointWriter(CheckpointStore& store) : store_(store), thread_([this] { work(); }) {}

CheckpointWriter::~CheckpointWriter() {
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
    log_error("the last checkpoint failed: {}", error.what());
  }
}

bool CheckpointWriter::ended() const {
  const std::lock_guard lock(mutex_);
  return !begun_;
}

void CheckpointWriter::begin(const CheckpointState& state) {
  TEMPER_CHECK(!busy_, "a save is under way");
  state_.header = state.header;
  state_.mesh = state.mesh;
  copy(state.tensors);
  busy_ = true;
  const std::lock_guard lock(mutex_);
  begun_ = true;
  changed_.notify_all();
}

void CheckpointWriter::finish() {
  TEMPER_CHECK(busy_, "no save is under way");
  std::unique_lock lock(mutex_);
  changed_.wait(lock, [this] { return !begun_; });
  busy_ = false;
  if (const std::exception_ptr failure = std::exchange(failure_, nullptr)) std::rethrow_exception(failure);
}

void CheckpointWriter::copy(const std::vector<TensorEntry>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> offsets;
  int64_t size_bytes = 0;
  for (const TensorEntry& entry : tensors) {
    offsets.push_back(size_bytes);
    size_bytes += (static_cast<int64_t>(entry.tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
  }
  if (staging_bytes() != size_bytes) staging_ = at::empty({size_bytes}, at::kByte);
  state_.tensors.clear();
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& from = tensors[i].tensor;
    const auto nbytes = static_cast<int64_t>(from.nbytes());
    const at::Tensor to = staging_.narrow(0, offsets[i], nbytes).view(from.scalar_type()).view(from.sizes());
    state_.tensors.push_back({tensors[i].name, to, tensors[i].whole_shape, tensors[i].start});
    if (!from.is_cpu() || !from.is_contiguous()) {
      to.copy_(from);
      continue;
    }
    for (int64_t at = 0; at < nbytes; at += kPieceBytes)
      pieces.push_back({static_cast<char*>(to.data_ptr()) + at, static_cast<const char*>(from.const_data_ptr()) + at,
                        std::min(kPieceBytes, nbytes - at)});
  }
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&pieces](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.size_bytes));
    }
  });
}

// produces: checkpoints; consumes: the state that begin() copied; waits for: begin(), the disk, the other ranks'
// writers; is unblocked by: all of these, the communicator's deadline, or the destructor.
void CheckpointWriter::work() {
  at::set_num_threads(1);
  setpriority(PRIO_PROCESS, static_cast<id_t>(gettid()), kNiceness);  // of this thread alone, and those it makes
  std::unique_lock lock(mutex_);
  for (;;) {
    changed_.wait(lock, [this] { return begun_ || stop_; });
    if (!begun_) return;
    lock.unlock();
    std::exception_ptr failure;
    try {
      store_.save(state_);
    } catch (...) {
      failure = std::current_exception();
    }
    lock.lock();
    failure_ = failure;
    begun_ = false;
    changed_.notify_all();
  }
}

}  // namespace temper
