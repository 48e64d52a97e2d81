#include "rollout/scheduler.h"

#include <algorithm>

#include "core/error.h"

namespace temper {

void Scheduler::add(Group& group) {
  for (const auto& sequence : group.sequences) {
    if (sequence->finished) continue;
    sequence->order = num_arrived_++;
    wait(*sequence);
  }
}

void Scheduler::wait(Sequence& sequence) {
  waiting_.emplace(sequence.order, &sequence);
  ++sequence.group->num_waiting;
}

void Scheduler::stop_waiting(Sequence& sequence) {
  sequence.group->num_waiting -= static_cast<int>(waiting_.erase(sequence.order));
}

std::vector<ScheduledSequence> Scheduler::schedule() {
  const int64_t preemptions = num_preemptions_;
  for (size_t i = 0; i < running_.size();)
    if (grow_or_preempt(i)) ++i;
  if (num_preemptions_ == preemptions) admit();

  std::vector<ScheduledSequence> plan;
  plan.reserve(running_.size());
  const auto decodes = [](const Sequence* sequence) { return sequence->num_uncomputed() == 1; };
  int64_t budget = std::max(options_.max_tokens_per_step, options_.max_num_seqs) -
                   std::count_if(running_.begin(), running_.end(), decodes);
  bool prefills = false;
  for (Sequence* sequence : running_) {
    const int64_t wanted = sequence->num_uncomputed();
    int64_t num_new = wanted;
    if (wanted > 1) {
      num_new = std::min(wanted, budget);
      // Whole prompts: one that exceeds the budget on its own gets a step of its own.
      if (!options_.enable_chunked_prefill && num_new < wanted) num_new = prefills ? 0 : wanted;
      if (num_new <= 0) continue;
      budget -= num_new;
      prefills = true;
    }
    plan.push_back({sequence, num_new});
  }
  TEMPER_CHECK(!plan.empty() || idle(), "{} sequences wait and none can run: {} of {} blocks free", waiting_.size(),
               pool_.num_free(), pool_.num_blocks());
  return plan;
}

// Blocks for what a sequence has grown by: the token it drew, and what an environment added. None where its prompt is
// still being computed. False: the sequence itself had to go.
bool Scheduler::grow_or_preempt(size_t index) {
  Sequence& sequence = *running_[index];
  while (static_cast<int64_t>(sequence.blocks.size()) < num_blocks(sequence.length())) {
    if (pool_.num_free() > 0) {
      sequence.blocks.push_back(allocate());
      continue;
    }
    preempt_last();
    if (running_.size() == index) return false;
  }
  return true;
}

void Scheduler::preempt_last() {
  Sequence& sequence = *running_.back();
  running_.pop_back();
  free_blocks(sequence);
  if (sequence.group->leader == &sequence) sequence.group->leader = nullptr;
  wait(sequence);
  ++num_preemptions_;
}

void Scheduler::preempt_all() {
  while (!running_.empty()) preempt_last();
}

// Lets waiting sequences join while there is a slot, and blocks for the tokens they bring plus one for everybody's
// growth.
void Scheduler::admit() {
  if (waiting_.empty() || num_running() >= options_.max_num_seqs) return;
  int64_t num_reserved = num_reserved_slots();
  for (auto next = waiting_.begin(); next != waiting_.end();) {
    Sequence& sequence = *(next++)->second;
    Group& group = *sequence.group;
    if (group.leader != nullptr) continue;  // forks soon
    if (num_running() + num_reserved >= options_.max_num_seqs) return;
    const Sequence* donor = donor_of(sequence);
    const std::vector<int32_t> shared = shared_blocks(sequence, donor);
    for (const int32_t block : shared) pool_.share(block);  // first: what is held is not evicted
    const int64_t num_needed = num_blocks(sequence.length()) - static_cast<int64_t>(shared.size());
    sequence.blocks = shared;
    if (pool_.num_free() < num_needed + num_running()) {
      free_blocks(sequence);
      return;
    }
    for (int64_t i = 0; i < num_needed; ++i) sequence.blocks.push_back(allocate());
    sequence.num_computed = static_cast<int64_t>(shared.size()) * options_.block_size;
    sequence.prefix_epoch = prefix_epoch_;
    if (donor == nullptr) num_prefix_tokens_ += sequence.num_computed;
    stop_waiting(sequence);
    join(sequence);
    if (options_.enable_prefix_sharing && donor == nullptr) {
      group.leader = &sequence;
      num_reserved = num_reserved_slots();
    }
  }
}

// Full blocks of the prompt that are computed already, from a member of the group or from the prefix cache. At least
// one token is left to compute, and never into a shared block.
std::vector<int32_t> Scheduler::shared_blocks(const Sequence& sequence, const Sequence* donor) {
  if (!options_.enable_prefix_sharing) return {};
  const Group& group = *sequence.group;
  const int64_t most = std::min(group.prompt_length(), sequence.length() - 1) / options_.block_size;
  if (donor == nullptr) return prefixes_.find(group.request.prompt_token_ids, most);
  return {donor->blocks.begin(), donor->blocks.begin() + most};
}

// REQUIRES: pool_.num_free() > 0.
int32_t Scheduler::allocate() {
  if (pool_.num_unkept() == 0) prefixes_.evict();
  return pool_.allocate();
}

void Scheduler::forget_prefixes() {
  prefixes_.clear();
  ++prefix_epoch_;
}

// Behind the last running member of its group, or at the end.
void Scheduler::join(Sequence& sequence) {
  const auto member = std::find_if(running_.rbegin(), running_.rend(),
                                   [&](const Sequence* other) { return other->group == sequence.group; });
  running_.insert(member == running_.rend() ? running_.end() : member.base(), &sequence);
}

// Slots that the waiting members of groups with a leader will take.
int64_t Scheduler::num_reserved_slots() const {
  int64_t count = 0;
  for (const Sequence* sequence : running_)
    if (sequence->group->leader == sequence) count += sequence->group->num_waiting;
  return count;
}

// A running member of the group whose full prompt blocks are computed.
const Sequence* Scheduler::donor_of(const Sequence& sequence) const {
  if (!options_.enable_prefix_sharing) return nullptr;
  for (const auto& member : sequence.group->sequences)
    if (member->num_computed >= sequence.group->prompt_length()) return member.get();
  return nullptr;
}

std::vector<Fork> Scheduler::fork(Sequence& leader) {
  Group& group = *leader.group;
  TEMPER_CHECK(group.leader == &leader && leader.num_uncomputed() == 0, "only a leader that is done forks");
  group.leader = nullptr;
  // Nothing that was computed before the cache was cleared: it may be other weights'.
  if (leader.prefix_epoch == prefix_epoch_) prefixes_.insert(group.request.prompt_token_ids, leader.blocks);
  if (leader.length() > group.prompt_length()) return {};  // it came back: its last token is not the prompt's
  const bool partial = group.prompt_length() % options_.block_size != 0;
  std::vector<Fork> forks;
  for (const auto& member : group.sequences) {
    if (!waiting_.contains(member->order) || member->length() != group.prompt_length()) continue;
    if (num_running() >= options_.max_num_seqs || pool_.num_free() < num_running() + partial) break;
    stop_waiting(*member);
    Fork fork{member.get()};
    member->blocks = leader.blocks;
    if (partial) {
      fork.copy_from = leader.blocks.back();
      fork.copy_to = member->blocks.back() = allocate();
    }
    for (size_t i = 0; i + partial < member->blocks.size(); ++i) pool_.share(member->blocks[i]);
    member->num_computed = leader.num_computed;
    join(*member);
    forks.push_back(fork);
  }
  return forks;
}

void Scheduler::retire(const std::vector<Sequence*>& sequences) {
  if (sequences.empty()) return;
  for (Sequence* sequence : sequences) {
    sequence->finished = true;
    if (sequence->group->leader == sequence) sequence->group->leader = nullptr;
    stop_waiting(*sequence);
    free_blocks(*sequence);
  }
  std::erase_if(running_, [](const Sequence* sequence) { return sequence->finished; });
}

void Scheduler::free_blocks(Sequence& sequence) {
  // The first blocks last: they are the first to be used again.
  for (auto block = sequence.blocks.rbegin(); block != sequence.blocks.rend(); ++block) pool_.release(*block);
  sequence.blocks.clear();
  sequence.num_computed = 0;
}

}  // namespace temper
