#include "rollout/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <map>

#include "core/rng.h"

namespace temper {
namespace {

std::unique_ptr<Group> make_group(int64_t id, int64_t prompt_length, int num_completions) {
  auto group = std::make_unique<Group>();
  group->request.id = id;
  group->request.prompt_token_ids.assign(static_cast<size_t>(prompt_length), 1);
  for (int32_t i = 0; i < num_completions; ++i) {
    auto sequence = std::make_unique<Sequence>();
    sequence->group = group.get();
    sequence->index = i;
    sequence->token_ids = group->request.prompt_token_ids;
    group->sequences.push_back(std::move(sequence));
  }
  return group;
}

// Plays the engine's part without a model: marks tokens as computed, draws token 1 for everybody who may draw. Returns
// them.
std::vector<Sequence*> play_step(Scheduler& scheduler) {
  std::vector<Sequence*> drawers;
  for (const auto& [sequence, num_new] : scheduler.schedule()) {
    sequence->num_computed += num_new;
    if (sequence->num_uncomputed() > 0) continue;
    drawers.push_back(sequence);
    if (sequence->group->leader != sequence) continue;
    for (const Fork& fork : scheduler.fork(*sequence)) drawers.push_back(fork.sequence);
  }
  for (Sequence* sequence : drawers) sequence->token_ids.push_back(1);
  return drawers;
}

TEST(Scheduler, MembersShareFullPromptBlocksAndOwnThePartialOne) {
  BlockPool pool(100);
  Scheduler scheduler({.block_size = 16}, pool);
  const auto group = make_group(0, 40, 3);
  scheduler.add(*group);
  EXPECT_EQ(play_step(scheduler).size(), 3u);
  EXPECT_EQ(pool.num_used(), 2 + 3);
  for (int i = 0; i < 2; ++i)  // three members and the prefix cache
    EXPECT_EQ(pool.num_holders(group->sequences[0]->blocks[static_cast<size_t>(i)]), 3 + 1);
  EXPECT_NE(group->sequences[0]->blocks[2], group->sequences[1]->blocks[2]);
  EXPECT_NE(group->sequences[1]->blocks[2], group->sequences[2]->blocks[2]);
}

TEST(Scheduler, APromptThatFillsItsBlocksIsSharedWhole) {
  BlockPool pool(100);
  Scheduler scheduler({.block_size = 16}, pool);
  const auto group = make_group(0, 32, 4);
  scheduler.add(*group);
  play_step(scheduler);
  EXPECT_EQ(pool.num_used(), 2);
  play_step(scheduler);
  EXPECT_EQ(pool.num_used(), 2 + 4);
}

TEST(Scheduler, PromptsAreChunkedBesideDecodingSequences) {
  BlockPool pool(100);
  Scheduler scheduler({.max_num_seqs = 4, .max_tokens_per_step = 10, .block_size = 16}, pool);
  const auto first = make_group(0, 4, 2), second = make_group(1, 25, 1);
  scheduler.add(*first);
  play_step(scheduler);
  scheduler.add(*second);
  const auto plan = scheduler.schedule();
  ASSERT_EQ(plan.size(), 3u);
  EXPECT_EQ(plan[0].num_new, 1);
  EXPECT_EQ(plan[1].num_new, 1);
  EXPECT_EQ(plan[2].num_new, 8);  // 10 - 2
}

TEST(Scheduler, WithoutChunksAPromptIsComputedInOneStep) {
  BlockPool pool(100);
  Scheduler scheduler({.max_num_seqs = 4, .max_tokens_per_step = 10, .block_size = 16, .enable_chunked_prefill = false},
                      pool);
  const auto first = make_group(0, 25, 1), second = make_group(1, 6, 1);
  scheduler.add(*first);
  scheduler.add(*second);
  const auto plan = scheduler.schedule();
  ASSERT_EQ(plan.size(), 1u);
  EXPECT_EQ(plan[0].num_new, 25);
}

TEST(Scheduler, SlotsOfAGroupThatComputesItsPromptAreKeptForIt) {
  BlockPool pool(100);
  Scheduler scheduler({.max_num_seqs = 4, .block_size = 16}, pool);
  const auto first = make_group(0, 20, 4), second = make_group(1, 20, 4);
  scheduler.add(*first);
  scheduler.add(*second);
  const auto drawers = play_step(scheduler);
  ASSERT_EQ(drawers.size(), 4u);
  for (const Sequence* sequence : drawers) EXPECT_EQ(sequence->group, first.get());
}

TEST(Scheduler, TheLastInLineIsPreemptedAndKeepsItsTokens) {
  BlockPool pool(4);
  Scheduler scheduler({.block_size = 16}, pool);
  const auto first = make_group(0, 31, 1), second = make_group(1, 15, 1);
  scheduler.add(*first);
  scheduler.add(*second);
  play_step(scheduler);  // 31 and 15 tokens take 2 blocks and 1
  play_step(scheduler);  // 32 and 16
  EXPECT_EQ(pool.num_free(), 1);
  const auto drawers =
      play_step(scheduler);  // the 33rd token takes the last block; none is left for the 17th of the other
  ASSERT_EQ(drawers.size(), 1u);
  EXPECT_EQ(drawers[0], first->sequences[0].get());
  EXPECT_EQ(scheduler.num_preemptions(), 1);
  EXPECT_EQ(scheduler.num_waiting(), 1);
  EXPECT_EQ(second->sequences[0]->length(), 17);
  EXPECT_TRUE(second->sequences[0]->blocks.empty());
  scheduler.retire({first->sequences[0].get()});
  EXPECT_EQ(scheduler.schedule()[0].num_new, 17);
}

TEST(Scheduler, ALaterGroupTakesTheBeginningOfItsPromptFromTheCache) {
  BlockPool pool(100);
  Scheduler scheduler({.block_size = 16}, pool);
  const auto first = make_group(0, 50, 2), second = make_group(1, 40, 1), third = make_group(2, 32, 1);
  scheduler.add(*first);
  play_step(scheduler);
  scheduler.retire({first->sequences[0].get(), first->sequences[1].get()});
  EXPECT_EQ(pool.num_used(), 0);
  scheduler.add(*second);
  scheduler.add(*third);
  const auto plan = scheduler.schedule();
  ASSERT_EQ(plan.size(), 2u);
  EXPECT_EQ(plan[0].num_new, 40 - 32);
  EXPECT_EQ(plan[1].num_new, 32 - 16);  // one token at least is computed, and into a block of its own
  EXPECT_EQ(second->sequences[0]->blocks[0], third->sequences[0]->blocks[0]);
  EXPECT_EQ(scheduler.num_prefix_tokens(), 32 + 16);
}

TEST(Scheduler, WhatWasComputedBeforeTheCacheWasClearedIsNotListed) {
  BlockPool pool(100);
  Scheduler scheduler({.max_tokens_per_step = 64, .block_size = 16}, pool);
  const auto first = make_group(0, 90, 1), second = make_group(1, 90, 1);
  scheduler.add(*first);
  play_step(scheduler);  // 64 of 90 tokens
  scheduler.forget_prefixes();
  play_step(scheduler);
  EXPECT_EQ(scheduler.prefixes().num_blocks(), 0);
  scheduler.add(*second);
  play_step(scheduler);
  EXPECT_EQ(scheduler.num_prefix_tokens(), 0);
}

// The property that everything rests on: whatever comes, goes, forks and is preempted, each block's holders are the
// sequences that list it and the prefix cache, nobody computes into a block that another holds, and in the end every
// block is free.
class RandomLife {
 public:
  explicit RandomLife(uint64_t seed)
      : seed_(seed),
        random_(seed),
        pool_(random_.in_range(12, 60)),
        scheduler_({.max_num_seqs = random_.in_range(1, 24),
                    .max_tokens_per_step = random_.in_range(1, 200),
                    .block_size = kBlockSize,
                    .enable_prefix_sharing = seed % 3 != 0,
                    .enable_chunked_prefill = seed % 2 == 0},
                   pool_) {}

  void step() {
    if (groups_.size() < 12 && random_.in_range(0, 2) == 0) add_group();
    if (!groups_.empty() && random_.in_range(0, 20) == 0) cancel(groups_.begin()->first);
    if (random_.in_range(0, 200) == 0) scheduler_.preempt_all();
    if (random_.in_range(0, 300) == 0) scheduler_.forget_prefixes();
    const auto plan = scheduler_.schedule();
    ASSERT_TRUE(!plan.empty() || scheduler_.idle());
    if (num_steps_++ % 16 == 0) {
      ASSERT_NO_FATAL_FAILURE(check_holders());
    }

    std::vector<Sequence*> drawers, finished;
    for (const auto& [sequence, num_new] : plan) {
      for (int64_t i = 0; i < num_new; ++i) {
        const auto position = static_cast<size_t>((sequence->num_computed + i) / kBlockSize);
        ASSERT_LT(position, sequence->blocks.size());
        ASSERT_EQ(pool_.num_holders(sequence->blocks[position]), 1);
      }
      sequence->num_computed += num_new;
      if (sequence->num_uncomputed() > 0) continue;
      drawers.push_back(sequence);
      if (sequence->group->leader != sequence) continue;
      for (const Fork& fork : scheduler_.fork(*sequence)) {
        drawers.push_back(fork.sequence);
        ++num_forks_;
      }
    }
    for (Sequence* sequence : drawers) {
      sequence->token_ids.push_back(1);
      if (sequence->length() >= 150 || random_.in_range(0, 12) == 0) finished.push_back(sequence);
    }
    num_leaves_ += static_cast<int64_t>(finished.size());
    scheduler_.retire(finished);
    std::erase_if(groups_, [](const auto& entry) {
      return std::all_of(entry.second->sequences.begin(), entry.second->sequences.end(),
                         [](const auto& sequence) { return sequence->finished; });
    });
  }

  void end() {
    while (!groups_.empty()) cancel(groups_.begin()->first);
    EXPECT_TRUE(scheduler_.idle());
    EXPECT_EQ(pool_.num_used(), 0) << "seed " << seed_;
    scheduler_.forget_prefixes();
    EXPECT_EQ(pool_.num_unkept(), pool_.num_blocks()) << "seed " << seed_;
  }

  int64_t num_events() const { return num_joins_ + num_leaves_ + num_forks_ + scheduler_.num_preemptions(); }
  int64_t num_prefix_tokens() const { return scheduler_.num_prefix_tokens(); }

 private:
  static constexpr int64_t kBlockSize = 16;

  // Prompts begin with one of three system prompts, cut anywhere.
  void add_group() {
    auto group = make_group(num_groups_, random_.in_range(1, 90), static_cast<int>(random_.in_range(1, 9)));
    const auto kind = static_cast<int32_t>(random_.in_range(2, 4));
    const int64_t common = random_.in_range(0, 90);
    auto& prompt = group->request.prompt_token_ids;
    for (size_t i = 0; i < prompt.size(); ++i)
      prompt[i] = static_cast<int64_t>(i) < common ? kind : static_cast<int32_t>(random_.in_range(5, 9));
    for (const auto& sequence : group->sequences) sequence->token_ids = prompt;
    num_joins_ += static_cast<int64_t>(group->sequences.size());
    scheduler_.add(*group);
    groups_.emplace(num_groups_++, std::move(group));
  }

  void cancel(int64_t id) {
    std::vector<Sequence*> rest;
    for (const auto& sequence : groups_.at(id)->sequences)
      if (!sequence->finished) rest.push_back(sequence.get());
    num_leaves_ += static_cast<int64_t>(rest.size());
    scheduler_.retire(rest);
    groups_.erase(id);
  }

  void check_holders() {
    std::map<int32_t, int64_t> holders;
    for (const auto& [id, group] : groups_)
      for (const auto& sequence : group->sequences)
        for (const int32_t block : sequence->blocks) ++holders[block];
    for (const auto& [block, count] : holders) ASSERT_EQ(pool_.num_holders(block), count + pool_.kept(block));
    ASSERT_EQ(static_cast<int64_t>(holders.size()), pool_.num_used());
    int64_t num_kept = 0;
    for (int32_t block = 0; block < pool_.num_blocks(); ++block) num_kept += pool_.kept(block);
    ASSERT_EQ(num_kept, scheduler_.prefixes().num_blocks());
  }

  uint64_t seed_;
  SplitMix64 random_;
  BlockPool pool_;
  Scheduler scheduler_;
  std::map<int64_t, std::unique_ptr<Group>> groups_;
  int64_t num_steps_ = 0, num_groups_ = 0, num_joins_ = 0, num_leaves_ = 0, num_forks_ = 0;
};

TEST(Scheduler, AMillionJoinsLeavesForksAndPreemptionsLeaveEveryBlockFree) {
  int64_t num_events = 0, num_prefix_tokens = 0;
  for (uint64_t seed = 1; num_events < 1000000; ++seed) {
    RandomLife life(seed);
    while (life.num_events() < 20000) ASSERT_NO_FATAL_FAILURE(life.step()) << "seed " << seed;
    life.end();
    num_events += life.num_events();
    num_prefix_tokens += life.num_prefix_tokens();
  }
  EXPECT_GT(num_prefix_tokens, 0);
}

}  // namespace
}  // namespace temper
