#include "trainer/sharded_weights.h"

#include <ATen/ATen.h>

#include "core/clock.h"
#include "core/error.h"
#include "core/system_memory.h"
#include "model/tensor_parallel.h"

namespace temper {
namespace {

constexpr int64_t kEnds = -1;

}  // namespace

ShardedWeights::ShardedWeights(const Ranks& ranks, Transformer& network, bool is_trained, const Visit& read)
    : communicator_(ranks.communicator()->split(0, ranks.rank())),
      ranks_(*communicator_),
      network_(network),
      plan_(parameter_layout(network.config()), Shard::kFull, ranks.rank(), ranks.size()),
      options_(at::TensorOptions(network.device()).dtype(is_trained ? at::kFloat : network.compute_dtype())) {
  own_.resize(plan_.segments().size());
  for (int64_t block = kEnds; block < plan_.num_blocks(); ++block) {
    // As f32, whatever is kept of it: what a network makes of the ends it makes of their masters.
    layouts_.push_back(segment_layout(network.config(), block));
    FlatParameters whole(layouts_.back(), at::kFloat, network.device());
    read(block, whole);
    if (block == kEnds) network_.load_ends(whole, 0);
    if (block == kEnds && !is_trained) continue;
    for (const Piece& piece : pieces_of(block)) {
      Own& own = own_[piece.segment];
      own.range = plan_.own(plan_.segments()[piece.segment]);
      own.weights = own_part(piece, whole).to(options_, /*non_blocking=*/false, /*copy=*/true);
      if (is_trained) own.gradients = at::zeros_like(own.weights);
    }
  }
  return_freed_memory();
  const auto load = [this](int64_t block, const FlatParameters& weights) { network_.load_block(block, weights); };
  Transformer::BlockStream stream;
  stream.acquire = [this, load](int64_t block, int64_t next) { acquire(block, next, load); };
  stream.release = [this](int64_t block) { network_.drop_block(block); };
  if (is_trained) {
    stream.gradients_begin = [this](int64_t block) {
      begin_gradients(block);
      const FlatParameters& sums = summing_.at(block).parameters;
      block == kEnds ? network_.set_end_gradients(sums) : network_.set_block_gradients(block, sums);
    };
    stream.gradients_done = [this](int64_t block) { reduce(block); };
  }
  network_.stream_blocks(std::move(stream));
}

std::vector<ShardedWeights::Piece> ShardedWeights::pieces_of(int64_t block) const {
  const auto size = [this](size_t segment) { return plan_.segments()[segment].size(); };
  if (block != kEnds) return {{static_cast<size_t>(block) + 1, {0, size(static_cast<size_t>(block) + 1)}}};
  const size_t last = plan_.segments().size() - 1;
  return {{0, {0, size(0)}}, {last, {size(0), size(0) + size(last)}}};
}

at::Tensor ShardedWeights::own_part(const Piece& piece, const FlatParameters& whole) const {
  const FlatRange& segment = plan_.segments()[piece.segment];
  const FlatRange own = plan_.own(segment);
  return whole.flat().narrow(0, piece.place.begin + own.begin - segment.begin, own.size());
}

// Uninitialised.
FlatParameters ShardedWeights::make_room(int64_t block) {
  const std::vector<ParameterSpec>& layout = layouts_[static_cast<size_t>(block - kEnds)];
  const int64_t size = flat_size(layout);
  for (at::Tensor& room : spare_)
    if (room.numel() == size) {
      std::swap(room, spare_.back());
      FlatParameters again(layout, spare_.back());
      spare_.pop_back();
      return again;
    }
  return {layout, at::empty({size}, options_)};
}

void ShardedWeights::take_back(FlatParameters& room) { spare_.push_back(std::exchange(room, {}).flat()); }

std::vector<FlatPart> ShardedWeights::parts_of(at::Tensor Own::*which) const {
  std::vector<FlatPart> parts;
  for (const Own& own : own_)
    if ((own.*which).defined() && own.range.size() > 0) parts.push_back({own.range.begin, own.*which});
  return parts;
}

void ShardedWeights::publish(PolicyVersion version, const Visit& copy) {
  acquire(kEnds, kEnds, [&](int64_t block, const FlatParameters& masters) {
    network_.load_ends(masters, version);
    if (copy) copy(block, masters);
  });
  for (int64_t block = 0; copy && block < plan_.num_blocks(); ++block) acquire(block, block + 1, copy);
  spare_.clear();
}

void ShardedWeights::visit(const Visit& visit) {
  for (int64_t block = kEnds; block < plan_.num_blocks(); ++block) acquire(block, block + 1, visit);
  spare_.clear();
}

void ShardedWeights::acquire(int64_t block, int64_t next, const Visit& visit) {
  if (!gathering_.contains(block)) start_gather(block);
  if (next >= 0 && next < plan_.num_blocks()) start_gather(next);
  Whole whole = std::move(gathering_.extract(block).mapped());
  wait_for(whole.sent);
  if (visit) visit(block, whole.parameters);
  take_back(whole.parameters);
}

void ShardedWeights::start_gather(int64_t block) {
  const auto [place, started] = gathering_.try_emplace(block);
  TEMPER_CHECK(started, "block {} is being gathered already", block);
  Whole& whole = place->second;
  whole.parameters = make_room(block);
  for (const Piece& piece : pieces_of(block)) {
    const at::Tensor segment = whole.parameters.flat().narrow(0, piece.place.begin, piece.place.size());
    const at::Tensor& own = own_[piece.segment].weights;
    const int64_t equal = piece.place.size() / ranks_.size();
    if (own.numel() > equal)  // what is left over, which this rank sends to all
      own_part(piece, whole.parameters).slice(0, equal).copy_(own.slice(0, equal));
    begin_gathering(ranks_, format("weights of block {}", block), own.narrow(0, 0, equal), segment, whole.sent);
  }
}

// The owner's part begins with the sums of earlier passes, the others' with zero: so the sum over the ranks adds this
// pass to them.
void ShardedWeights::begin_gradients(int64_t block) {
  const auto [place, begun] = summing_.try_emplace(block);
  if (!begun) return;
  FlatParameters& sums = place->second.parameters;
  sums = make_room(block);
  sums.flat().zero_();
  for (const Piece& piece : pieces_of(block)) own_part(piece, sums).copy_(own_[piece.segment].gradients);
}

void ShardedWeights::reduce(int64_t block) {
  while (!reducing_.empty()) finish_reduction(reducing_.begin()->first);
  Whole& sums = reducing_.emplace(block, std::move(summing_.extract(block).mapped())).first->second;
  for (const Piece& piece : pieces_of(block))
    begin_reduction(ranks_, format("gradients of block {}", block),
                    sums.parameters.flat().narrow(0, piece.place.begin, piece.place.size()), sums.sent);
}

void ShardedWeights::finish_reduction(int64_t block) {
  Whole sums = std::move(reducing_.extract(block).mapped());
  wait_for(sums.sent);
  for (const Piece& piece : pieces_of(block)) own_[piece.segment].gradients.copy_(own_part(piece, sums.parameters));
  block == kEnds ? network_.set_end_gradients({}) : network_.set_block_gradients(block, {});
  take_back(sums.parameters);
}

void ShardedWeights::wait_for(std::vector<CommHandle>& sent) {
  const Stopwatch watch;
  for (CommHandle& handle : sent) handle.wait();
  wait_s_ += watch.seconds();
}

void ShardedWeights::end_pass() {
  begin_gradients(kEnds);
  reduce(kEnds);
  while (!reducing_.empty()) finish_reduction(reducing_.begin()->first);
}

void ShardedWeights::idle_forward() {
  for (int64_t block = 0; block < plan_.num_blocks(); ++block) acquire(block, block + 1, {});
}

void ShardedWeights::idle_backward() {
  for (int64_t block = plan_.num_blocks() - 1; block >= 0; --block) {
    acquire(block, block - 1, {});
    begin_gradients(block);
    reduce(block);
  }
}

}  // namespace temper
