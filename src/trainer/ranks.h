// What the train loop shares with the trainer's other ranks. Every rank holds the whole batch (its small arrays and
// token ids); each computes the completions that fall to it; gradients, metrics and per-token numbers are summed. All
// ranks call the same functions in the same order. With one rank nothing is sent and nothing is copied.
#pragma once
#include <functional>
#include <memory>
#include <string>
#include <vector>

#include "algos/metric_sums.h"
#include "comm/communicator.h"
#include "model/parameters.h"
#include "trainer/shard_plan.h"
#include "trainer/step_batch.h"

namespace temper {

class Ranks {
 public:
  Ranks() = default;  // one rank, alone
  explicit Ranks(Communicator& communicator) : comm_(&communicator) {}

  // All of them.
  int rank() const { return comm_ == nullptr ? 0 : comm_->rank(); }
  int size() const { return comm_ == nullptr ? 1 : comm_->size(); }
  bool leads() const { return rank() == 0; }
  Communicator* communicator() const { return comm_; }  // null: alone

  // The same ranks in groups of `count` neighbours that compute each layer together (model/tensor_parallel.h): a group
  // works as one data-parallel rank. A collective call, before with_replicas(); ConfigError where the groups would
  // differ in size.
  Ranks with_tensor_parallel(int64_t count) const;
  Communicator* tensor_group() const { return tensor_.get(); }  // null: each rank computes alone
  // One rank of each group: those that hold the same part of every layer as this one.
  Ranks data_parallel() const { return data_ ? Ranks(data_) : *this; }

  // The same ranks as `count` replicas of the model: neighbours share one replica out among them, each the same parts
  // as its peers in the others (HSDP, Zhao et al. 2023, https://arxiv.org/abs/2304.11277). A collective call;
  // ConfigError where the replicas would differ in size.
  Ranks with_replicas(int64_t count) const;
  int num_replicas() const { return peers_ == nullptr ? 1 : peers_->size(); }
  bool in_first_replica() const { return peers_ == nullptr || peers_->rank() == 0; }
  // The data-parallel ranks that share this one's replica; all of them where there is one.
  Ranks shard_group() const;

  // Of these completions of the batch, the ones this data-parallel rank computes: groups stay whole where they must
  // (losses on pairs) or where there are enough of them; the longest first, each to the rank with the least work so
  // far.
  std::vector<int64_t> own(const StepBatch& batch, const std::vector<int64_t>& completions, bool whole_groups) const;

  // numbers: each data-parallel rank has filled its own entries, the others are zero; afterwards all ranks have all.
  void fill_in(const at::Tensor& numbers) const;
  // What this rank owns of sharded gradients becomes the sum over the replicas. parts: they are in these.
  void sum_over_replicas(const ShardPlan& plan, const std::vector<FlatPart>& parts) const;
  // The sums of all data-parallel ranks, merged in their order.
  MetricSums merge(const MetricSums& own) const;
  void wait_for_all(const std::string& what) const;
  int64_t sum(int64_t value) const;
  int64_t max(int64_t value) const;
  bool any(bool value) const;
  // Raises one error on all ranks where one of them has one (empty: none): the first rank's.
  std::string first_error(const std::string& own) const;
  // The first rank alone acts; all return when it has. Its IoError is raised on all ranks.
  void lead(const std::function<void()>& act) const;

 private:
  explicit Ranks(const std::shared_ptr<Communicator>& group) : comm_(group.get()), group_(group) {}

  Communicator* comm_ = nullptr;
  // Shared with the copies. With tensor parallelism: the ranks that hold the same parts, and those that hold the
  // others.
  std::shared_ptr<Communicator> data_, tensor_;
  // Where there are several replicas: the ranks of this one, and those with the same parts.
  std::shared_ptr<Communicator> group_, peers_;
};

// Sums a model's gradients over the data-parallel ranks, a block's as soon as its backward is done, so that the sums
// travel while the blocks below are computed. The embedding's goes first, as soon as the head (which may be the same
// matrix) has added its part; what its lookups add is known last, and is few rows: those of the tokens in the
// micro-batch. With a sharded plan each rank gets the sums of what it owns; elsewhere its buffer is void.
class GradientSum {
 public:
  GradientSum(const Ranks& ranks, const ShardPlan& plan, const FlatParameters& gradients)
      : ranks_(plan.is_sharded() ? ranks.shard_group() : ranks.data_parallel()),
        plan_(plan),
        flat_(gradients.flat()),
        embedding_(gradients["model.embed_tokens.weight"]),
        next_(plan.num_blocks() - 1) {}

  // The gradients of this transformer block, and of what lies behind it, will not change any more. Blocks come last to
  // first.
  void block_done(int64_t block);
  // Of the embedding's gradient, not yet in it: rows [T, hidden] of these tokens.
  void looked_up(const at::Tensor& token_ids, const at::Tensor& rows);
  // What is left; then the gradients are the sums. The next sum may begin. Returns the seconds spent waiting.
  double finish();

 private:
  void send(const std::string& name, const FlatRange& segment);
  void add_lookups();

  Ranks ranks_;  // that share one replica's parts
  ShardPlan plan_;
  at::Tensor flat_, embedding_;
  std::vector<at::Tensor> looked_up_ids_, looked_up_rows_;  // of this rank
  int64_t next_;                                            // the block whose turn it is; -1: all are on their way
  std::vector<CommHandle> sent_;
};

// These are among the ranks of a shard group.
// Begins one segment's way: its sums to their owners, in place, or the owners' parts to all ranks. own: this rank's
// equal part, in `segment` or elsewhere. What is left over after equal parts is few elements: all ranks get their sum,
// and only the last rank's counts; it is gathered from the last rank's `segment`.
void begin_reduction(const Ranks& ranks, const std::string& name, const at::Tensor& segment,
                     std::vector<CommHandle>& sent);
void begin_gathering(const Ranks& ranks, const std::string& name, const at::Tensor& own, const at::Tensor& segment,
                     std::vector<CommHandle>& sent);

// Every owner's part of the flat buffer reaches all ranks.
void gather_parts(const Ranks& ranks, const ShardPlan& plan, const char* name, const at::Tensor& flat);

// sqrt(sum of squares) of a model's gradients that lie with their owners, or of the whole buffer where nothing is
// sharded. What all ranks of a tensor-parallel group hold counts once. `ranks`: all.
double global_norm(const Ranks& ranks, const ShardPlan& plan, const std::vector<ParameterSpec>& layout,
                   const std::vector<FlatPart>& gradients);

}  // namespace temper
