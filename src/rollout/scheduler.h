// Decides what each engine step computes: one token of every decoding sequence, then chunks of prompts (and of what an
// environment added to completions) up to the token budget. Sequences join when a slot and blocks are free, first come
// first served; when a decoding sequence finds no block, the last in line gives its blocks up and is computed anew
// later (drawn tokens are kept).
//
// A group's prompt is computed once: its first sequence leads, the others wait; fork() then gives them the full blocks
// of the prompt by reference and a copy of the last, partial one. A sequence that joins later takes the full prompt
// blocks from any running one of its group. The full blocks of a computed prompt also go into the prefix cache, where a
// later group finds them; groups that join in the same step compute theirs apart. Cached blocks that no sequence holds
// are free: they are evicted when a block is needed, so preemption can always free them all. No tensors, one thread.
#pragma once
#include <cstdint>
#include <map>
#include <vector>

#include "rollout/block_pool.h"
#include "rollout/prefix_cache.h"
#include "rollout/sequence.h"

namespace temper {

struct SchedulerOptions {
  int64_t max_num_seqs = 64;
  int64_t max_tokens_per_step = 2048;
  int64_t block_size = 16;
  bool enable_prefix_sharing = true;  // in a group, and across groups through the prefix cache
  bool enable_chunked_prefill = true;
};

struct ScheduledSequence {
  Sequence* sequence = nullptr;
  int64_t num_new = 0;  // tokens from num_computed on
};

struct Fork {
  Sequence* sequence = nullptr;
  int32_t copy_from = -1;  // the partial block and its copy; -1: the prompt ends with its block
  int32_t copy_to = -1;
};

class Scheduler {
 public:
  Scheduler(const SchedulerOptions& options, BlockPool& pool)
      : options_(options), pool_(pool), prefixes_(options.block_size, pool) {}

  void add(Group& group);
  // Members of a group lie next to each other, so that attention reads their shared blocks once. Empty: nothing to do.
  std::vector<ScheduledSequence> schedule();
  // Once the leader is computed and before its next token is drawn: the waiting members that find a slot, which now run
  // and have the same tokens computed as the leader. None where the leader was preempted after its first token: the
  // others join by themselves and take its blocks.
  std::vector<Fork> fork(Sequence& leader);
  // Takes finished (or cancelled) sequences out and frees their blocks.
  void retire(const std::vector<Sequence*>& sequences);
  // All running sequences back to the queue, in order: their cache is void (new weights, released memory).
  void preempt_all();
  // The prefix cache is void: the weights changed, or the memory is gone. What running sequences hold stays theirs.
  void forget_prefixes();

  bool idle() const { return running_.empty() && waiting_.empty(); }
  int64_t num_running() const { return static_cast<int64_t>(running_.size()); }
  int64_t num_waiting() const { return static_cast<int64_t>(waiting_.size()); }
  int64_t num_preemptions() const { return num_preemptions_; }
  int64_t num_prefix_tokens() const { return num_prefix_tokens_; }  // taken from the prefix cache
  const PrefixCache& prefixes() const { return prefixes_; }

 private:
  bool grow_or_preempt(size_t index);
  void preempt_last();
  void admit();
  void wait(Sequence& sequence);
  void stop_waiting(Sequence& sequence);
  void join(Sequence& sequence);
  int64_t num_reserved_slots() const;
  const Sequence* donor_of(const Sequence& sequence) const;
  int64_t num_blocks(int64_t tokens) const { return (tokens + options_.block_size - 1) / options_.block_size; }
  void free_blocks(Sequence& sequence);
  int32_t allocate();
  std::vector<int32_t> shared_blocks(const Sequence& sequence, const Sequence* donor);

  SchedulerOptions options_;
  BlockPool& pool_;
  PrefixCache prefixes_;
  int64_t prefix_epoch_ = 0;              // how often it was cleared
  std::map<int64_t, Sequence*> waiting_;  // by order of arrival: preempted ones come before those that never ran
  std::vector<Sequence*> running_;        // in the order of joining, groups together
  int64_t num_arrived_ = 0;
  int64_t num_preemptions_ = 0;
  int64_t num_prefix_tokens_ = 0;
};

}  // namespace temper
