#include "comm/communicator.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "comm/rank_board.h"
#include "core/error.h"

namespace temper {
namespace {

constexpr const char* kKindNames[] = {"all_reduce", "reduce_scatter", "all_gather",
                                      "all_to_all", "broadcast",      "barrier"};

double seconds_of(std::chrono::steady_clock::duration duration) {
  return std::chrono::duration<double>(duration).count();
}

}  // namespace

std::string CommOperation::describe() const {
  return format("{} \"{}\" (operation {}, {} bytes) of rank {}", kKindNames[static_cast<size_t>(kind)], name, sequence,
                size_bytes(), rank);
}

void CommOperation::finish() {
  const std::lock_guard lock(mutex_);
  done_ = true;
  changed_.notify_all();
}

void CommOperation::fail(const std::string& why) {
  const std::lock_guard lock(mutex_);
  if (done_) return;
  failure_ = why;
  done_ = true;
  changed_.notify_all();
}

bool CommOperation::done() const {
  const std::lock_guard lock(mutex_);
  return done_;
}

bool CommOperation::wait_until(std::chrono::steady_clock::time_point time) {
  std::unique_lock lock(mutex_);
  if (!changed_.wait_until(lock, time, [this] { return done_; })) return false;
  if (!failure_.empty()) throw CommError("{}", failure_);
  return true;
}

void CommHandle::wait() {
  if (!operation_) return;
  if (operation_->wait_until(operation_->deadline)) {
    operation_.reset();
    return;
  }
  const std::string why = communicator_->late_text(*operation_);
  communicator_->abort(why);
  throw CommError("{}", why);
}

Communicator::Communicator(int rank, int size, const CommOptions& options)
    : rank_(rank), size_(size), options_(options) {}
Communicator::~Communicator() = default;

void Communicator::set_board(std::unique_ptr<RankBoard> board) { board_ = std::move(board); }

std::string Communicator::late_ranks(const CommOperation& operation) const {
  const std::string known = missing_ranks(operation);
  return known.empty() && board_ ? board_->describe_missing(operation.sequence) : known;
}

std::string Communicator::late_text(const CommOperation& operation) const {
  const std::string missing = late_ranks(operation);
  return format(
      "{} is not done after {} s: {}. See that rank's log; a longer train.comm_timeout_s gives slow ranks time.",
      operation.describe(), seconds_of(std::chrono::steady_clock::now() - operation.started),
      missing.empty() ? "a rank is late or gone" : "held up by " + missing);
}

void Communicator::start_on(Communicator& other, const std::shared_ptr<CommOperation>& operation) {
  // Its number is the caller's; the other's own operations (of its split) come after it.
  other.next_sequence_ = std::max(other.next_sequence_, operation->sequence + 1);
  other.start(operation);
}

CommHandle Communicator::all_reduce(const std::string& name, const at::Tensor& tensor, ReduceOp op) {
  return begin(CommKind::kAllReduce, name, tensor, tensor, op, 0);
}

CommHandle Communicator::reduce_scatter(const std::string& name, const at::Tensor& in, const at::Tensor& out,
                                        ReduceOp op) {
  TEMPER_CHECK(in.numel() == out.numel() * size_, "{}: {} elements for {} ranks of {}", name, in.numel(), size_,
               out.numel());
  return begin(CommKind::kReduceScatter, name, in, out, op, 0);
}

CommHandle Communicator::all_gather(const std::string& name, const at::Tensor& in, const at::Tensor& out) {
  TEMPER_CHECK(out.numel() == in.numel() * size_, "{}: {} elements from {} ranks of {}", name, out.numel(), size_,
               in.numel());
  return begin(CommKind::kAllGather, name, in, out, ReduceOp::kSum, 0);
}

CommHandle Communicator::all_to_all(const std::string& name, const at::Tensor& in, const at::Tensor& out) {
  TEMPER_CHECK(out.numel() == in.numel() && in.numel() % size_ == 0, "{}: {} and {} elements for {} ranks", name,
               in.numel(), out.numel(), size_);
  return begin(CommKind::kAllToAll, name, in, out, ReduceOp::kSum, 0);
}

CommHandle Communicator::broadcast(const std::string& name, const at::Tensor& tensor, int root) {
  TEMPER_CHECK(0 <= root && root < size_, "{}: root {} of {} ranks", name, root, size_);
  return begin(CommKind::kBroadcast, name, tensor, tensor, ReduceOp::kSum, root);
}

void Communicator::barrier(const std::string& name) {
  begin(CommKind::kBarrier, name, {}, {}, ReduceOp::kSum, 0).wait();
}

std::vector<std::string> Communicator::gather_texts(const std::string& name, const std::string& text) {
  const at::Tensor length = at::full({1}, static_cast<int64_t>(text.size()), at::kLong);
  const at::Tensor lengths = at::empty({size_}, at::kLong);
  all_gather(name, length, lengths).wait();
  const int64_t longest = std::max<int64_t>(1, lengths.max().item<int64_t>());
  const at::Tensor mine = at::zeros({longest}, at::kByte), all = at::empty({size_ * longest}, at::kByte);
  std::copy(text.begin(), text.end(), mine.mutable_data_ptr<uint8_t>());
  all_gather(name, mine, all).wait();
  std::vector<std::string> texts;
  for (int r = 0; r < size_; ++r)
    texts.emplace_back(reinterpret_cast<const char*>(all.const_data_ptr<uint8_t>()) + r * longest,
                       static_cast<size_t>(lengths[r].item<int64_t>()));
  return texts;
}

CommHandle Communicator::begin(CommKind kind, const std::string& name, const at::Tensor& in, const at::Tensor& out,
                               ReduceOp op, int root) {
  for (const at::Tensor* tensor : {&in, &out})
    TEMPER_CHECK(!tensor->defined() || (tensor->is_contiguous() && tensor->scalar_type() == in.scalar_type()),
                 "{} \"{}\": tensors must be contiguous and of one dtype", kKindNames[static_cast<size_t>(kind)], name);
  auto operation = std::make_shared<CommOperation>();
  operation->kind = kind;
  operation->op = op;
  operation->name = name;
  operation->rank = rank_;
  operation->root = root;
  operation->in = in;
  operation->out = out;
  if (options_.check_agreement && !checking_) check_agreement(*operation);
  operation->sequence = next_sequence_++;
  operation->started = std::chrono::steady_clock::now();
  operation->deadline = operation->started + options_.timeout;
  if (board_) board_->begun(operation);
  start(operation);
  return CommHandle(operation, *this);
}

// A small fixed-size exchange before the operation itself: what each rank is about to do.
void Communicator::check_agreement(const CommOperation& operation) {
  constexpr int64_t kWidth = 128;
  checking_ = true;
  const std::string text = format(
      "{} \"{}\" of {} bytes {}, op {}, root {}", kKindNames[static_cast<size_t>(operation.kind)], operation.name,
      operation.size_bytes(), operation.in.defined() ? at::toString(operation.in.scalar_type()) : "",
      static_cast<int>(operation.op), operation.root);
  const at::Tensor mine = at::zeros({kWidth}, at::kByte), all = at::empty({size_ * kWidth}, at::kByte);
  std::copy_n(text.begin(), std::min<int64_t>(kWidth - 1, static_cast<int64_t>(text.size())),
              mine.mutable_data_ptr<uint8_t>());
  all_gather("agreement", mine, all).wait();
  checking_ = false;
  const auto* said = reinterpret_cast<const char*>(all.const_data_ptr<uint8_t>());
  for (int r = 0; r < size_; ++r)
    if (std::string(said + r * kWidth) != said + rank_ * kWidth) {
      const std::string why = format("ranks are out of step: rank {} calls {}, rank {} calls {}.", rank_,
                                     said + rank_ * kWidth, r, said + r * kWidth);
      abort(why);
      throw CommError("{}", why);
    }
}

void reduce_into(const at::Tensor& target, const at::Tensor& source, ReduceOp op) {
  at::Tensor result = target;
  switch (op) {
    case ReduceOp::kSum:
      result.add_(source);
      return;
    case ReduceOp::kMax:
      at::max_out(result, target, source);
      return;
    case ReduceOp::kMin:
      at::min_out(result, target, source);
      return;
  }
}

std::string join_ranks(const std::vector<int>& ranks) {
  std::string text = ranks.size() == 1 ? "rank " : "ranks ";
  for (size_t i = 0; i < ranks.size(); ++i) {
    if (i > 0) text += i + 1 == ranks.size() ? " and " : ", ";
    text += std::to_string(ranks[i]);
  }
  return text;
}

}  // namespace temper
