#include "rollout/scheduler.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

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
  for (int i = 0; i < 2; ++i) EXPECT_EQ(pool.num_holders(group->sequences[0]->blocks[static_cast<size_t>(i)]), 3);
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

// The property that everything rests on: whatever comes, goes, forks and is preempted, each block's holders are the
// sequences that list it, nobody computes into a block that another holds, and in the end every block is free.
TEST(Scheduler, RandomJoinsLeavesForksAndPreemptionsLeaveEveryBlockFree) {
  for (uint64_t seed = 1; seed <= 20; ++seed) {
    SplitMix64 random(seed);
    const int64_t block_size = 16;
    BlockPool pool(random.in_range(12, 60));
    Scheduler scheduler({.max_num_seqs = random.in_range(1, 24),
                         .max_tokens_per_step = random.in_range(1, 200),
                         .block_size = block_size,
                         .enable_prefix_sharing = seed % 3 != 0,
                         .enable_chunked_prefill = seed % 2 == 0},
                        pool);
    std::map<int64_t, std::unique_ptr<Group>> groups;
    const auto remove_group = [&](int64_t id) {
      std::vector<Sequence*> rest;
      for (const auto& sequence : groups.at(id)->sequences)
        if (!sequence->finished) rest.push_back(sequence.get());
      scheduler.retire(rest);
      groups.erase(id);
    };
    for (int64_t step = 0; step < 2000; ++step) {
      if (step < 1500 && random.in_range(0, 9) == 0) {
        auto group = make_group(step, random.in_range(1, 90), static_cast<int>(random.in_range(1, 9)));
        scheduler.add(*group);
        groups.emplace(step, std::move(group));
      }
      if (!groups.empty() && random.in_range(0, 60) == 0) remove_group(groups.begin()->first);
      if (random.in_range(0, 200) == 0) scheduler.preempt_all();

      std::map<int32_t, int64_t> holders;
      const auto plan = scheduler.schedule();
      for (const auto& [id, group] : groups)
        for (const auto& sequence : group->sequences)
          for (const int32_t block : sequence->blocks) ++holders[block];
      for (const auto& [block, count] : holders) ASSERT_EQ(pool.num_holders(block), count);
      ASSERT_EQ(static_cast<int64_t>(holders.size()), pool.num_used());

      std::vector<Sequence*> drawers, finished;
      for (const auto& [sequence, num_new] : plan) {
        for (int64_t i = 0; i < num_new; ++i) {
          const auto position = static_cast<size_t>((sequence->num_computed + i) / block_size);
          ASSERT_LT(position, sequence->blocks.size());
          ASSERT_EQ(pool.num_holders(sequence->blocks[position]), 1);
        }
        sequence->num_computed += num_new;
        if (sequence->num_uncomputed() > 0) continue;
        drawers.push_back(sequence);
        if (sequence->group->leader != sequence) continue;
        for (const Fork& fork : scheduler.fork(*sequence)) drawers.push_back(fork.sequence);
      }
      ASSERT_TRUE(!plan.empty() || scheduler.idle());
      for (Sequence* sequence : drawers) {
        sequence->token_ids.push_back(1);
        if (sequence->length() >= 150 || random.in_range(0, 30) == 0) finished.push_back(sequence);
      }
      scheduler.retire(finished);
    }
    while (!groups.empty()) remove_group(groups.begin()->first);
    EXPECT_TRUE(scheduler.idle());
    EXPECT_EQ(pool.num_used(), 0) << "seed " << seed;
  }
}

}  // namespace
}  // namespace temper
