// A model whose weights, gradients and moments lie with their owners (ZeRO-3, Rajbhandari et al. 2020,
// https://arxiv.org/abs/1910.02054). The flat buffers keep their layout, but of each transformer block only this rank's
// part has memory behind it; a block's weights are gathered just before it runs, forward and again backward (its inside
// is recomputed), and its gradients go to their owners as soon as they are there. The next block's weights travel while
// a block is computed, as do the gradients of the one before: two gathered blocks and two blocks' gradients at most.
// What lies before and behind the blocks (embedding, last norm, heads) stays on every rank in the compute dtype.
//
// Every rank makes the same passes in the same order: one that has no work idles through them.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "model/transformer.h"
#include "trainer/ranks.h"
#include "trainer/shard_plan.h"

namespace temper {

class ShardedWeights {
 public:
  // masters and gradients: whole layouts, whose memory this manages. network outlives this. Splits a communicator off.
  ShardedWeights(const Ranks& ranks, const FlatParameters& masters, const FlatParameters& gradients,
                 Transformer& network);
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;

  const ShardPlan& plan() const { return plan_; }

  // Called with a block (-1: what lies before and behind the blocks) while its masters are all here.
  using Visit = std::function<void(int64_t block)>;
  // The masters as they are now become what is computed with; whoever keeps another copy (or nobody) visits them.
  void publish(PolicyVersion version, const Visit& copy);

  // After a backward pass: the gradients outside the blocks go to their owners; all are with them when this returns.
  void end_pass();
  // The communication of a forward pass, or of its backward, without the computation.
  void idle_forward();
  void idle_backward();

  // Seconds spent waiting for other ranks since the last call.
  double take_wait_s() { return std::exchange(wait_s_, 0); }

  // All masters on all ranks, for a checkpoint or an export; and back to the owners' parts.
  void gather();
  void release();

 private:
  // Visits the block's masters, or (empty) lets them go by.
  void acquire(int64_t block, int64_t next, const Visit& visit);
  void reduce(size_t segment);
  void finish_reduction(size_t segment);
  void start_gather(size_t segment);
  void finish_gather(size_t segment);
  void release_others(const at::Tensor& flat, size_t segment) const;

  std::unique_ptr<Communicator> communicator_;  // its own: several models' passes may interleave
  Ranks ranks_;
  ShardPlan plan_;
  FlatParameters masters_, gradients_;
  Transformer& network_;
  std::map<size_t, std::vector<CommHandle>> gathering_, reducing_;  // by segment
  double wait_s_ = 0;
};

}  // namespace temper
