#include "trainer/sharded_weights.h"

#include <ATen/ATen.h>

#include "core/clock.h"
#include "core/error.h"
#include "model/large_pages.h"

namespace temper {

ShardedWeights::ShardedWeights(const Ranks& ranks, const FlatParameters& masters, const FlatParameters& gradients,
                               Transformer& network)
    : communicator_(ranks.communicator()->split(0, ranks.rank())),
      ranks_(*communicator_),
      plan_(masters.specs(), Shard::kFull, ranks.rank(), ranks.size()),
      masters_(masters),
      gradients_(gradients),
      network_(network) {
  network_.stream_blocks({.acquire =
                              [this](int64_t block, int64_t next) {
                                acquire(block, next, [this](int64_t b) { network_.load_block(b, masters_); });
                              },
                          .release = [this](int64_t block) { network_.drop_block(block); },
                          .gradients_done = [this](int64_t block) { reduce(static_cast<size_t>(block) + 1); }});
  release();
}

void ShardedWeights::publish(PolicyVersion version, const Visit& copy) {
  const size_t last = plan_.segments().size() - 1;
  for (const size_t segment : {size_t{0}, last}) start_gather(segment);
  for (const size_t segment : {size_t{0}, last}) finish_gather(segment);
  network_.load_ends(masters_, version);
  if (copy) copy(-1);
  for (const size_t segment : {size_t{0}, last}) release_others(masters_.flat(), segment);
  if (!copy) return;
  for (int64_t block = 0; block < plan_.num_blocks(); ++block) acquire(block, block + 1, copy);
}

void ShardedWeights::acquire(int64_t block, int64_t next, const Visit& visit) {
  const auto segment = static_cast<size_t>(block) + 1;
  if (!gathering_.contains(segment)) start_gather(segment);
  if (next >= 0 && next < plan_.num_blocks()) start_gather(static_cast<size_t>(next) + 1);
  finish_gather(segment);
  if (visit) visit(block);
  release_others(masters_.flat(), segment);
}

void ShardedWeights::end_pass() {
  const size_t last = plan_.segments().size() - 1;
  reduce(0);
  reduce(last);
  while (!reducing_.empty()) finish_reduction(reducing_.begin()->first);
}

void ShardedWeights::idle_forward() {
  for (int64_t block = 0; block < plan_.num_blocks(); ++block) acquire(block, block + 1, {});
}

void ShardedWeights::idle_backward() {
  for (int64_t block = plan_.num_blocks() - 1; block >= 0; --block) {
    acquire(block, block - 1, {});
    reduce(static_cast<size_t>(block) + 1);
  }
}

void ShardedWeights::gather() {
  for (size_t segment = 0; segment < plan_.segments().size(); ++segment) start_gather(segment);
  for (size_t segment = 0; segment < plan_.segments().size(); ++segment) finish_gather(segment);
}

void ShardedWeights::release() {
  for (size_t segment = 0; segment < plan_.segments().size(); ++segment) release_others(masters_.flat(), segment);
}

// The owner's part holds the sums of earlier passes, the others' parts are zero: so the sum over the ranks adds this
// pass to them.
void ShardedWeights::reduce(size_t segment) {
  std::vector<size_t> before;
  for (const auto& [earlier, handles] : reducing_) before.push_back(earlier);
  for (const size_t earlier : before) finish_reduction(earlier);
  begin_reduction(ranks_, plan_, format("gradients of segment {}", segment), gradients_.flat(),
                  plan_.segments()[segment], reducing_[segment]);
}

void ShardedWeights::finish_reduction(size_t segment) {
  const Stopwatch watch;
  for (CommHandle& handle : reducing_.at(segment)) handle.wait();
  wait_s_ += watch.seconds();
  reducing_.erase(segment);
  release_others(gradients_.flat(), segment);
}

void ShardedWeights::start_gather(size_t segment) {
  std::vector<CommHandle>& sent = gathering_[segment];
  TEMPER_CHECK(sent.empty(), "segment {} is being gathered already", segment);
  begin_gathering(ranks_, plan_, format("weights of segment {}", segment), masters_.flat(), plan_.segments()[segment],
                  sent);
}

void ShardedWeights::finish_gather(size_t segment) {
  const Stopwatch watch;
  for (CommHandle& handle : gathering_.at(segment)) handle.wait();
  wait_s_ += watch.seconds();
  gathering_.erase(segment);
}

// Of a segment: what other ranks own has no memory any more, and reads as zeros.
void ShardedWeights::release_others(const at::Tensor& flat, size_t segment) const {
  const FlatRange whole = plan_.segments()[segment], rest = plan_.rest(whole);
  const FlatRange own = plan_.part(whole, ranks_.rank());
  const auto drop = [&flat](int64_t begin, int64_t end) {
    if (begin < end) release_memory(flat.narrow(0, begin, end - begin));
  };
  drop(whole.begin, own.begin);
  drop(own.end, rest.begin);
  if (ranks_.rank() != ranks_.size() - 1) drop(rest.begin, rest.end);
}

}  // namespace temper
