#include "rollout/prefix_cache.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

// Blocks of four tokens: lists a prompt that was computed into fresh blocks, then lets go of them.
std::vector<int32_t> compute(PrefixCache& cache, BlockPool& pool, const std::vector<int32_t>& prompt) {
  std::vector<int32_t> blocks;
  for (size_t i = 0; i * 4 < prompt.size(); ++i) blocks.push_back(pool.allocate());
  cache.insert(prompt, blocks);
  for (const int32_t block : blocks) pool.release(block);
  return blocks;
}

TEST(PrefixCache, FindsTheFullBlocksOfAnEqualBeginning) {
  BlockPool pool(10);
  PrefixCache cache(4, pool);
  const std::vector<int32_t> blocks = compute(cache, pool, {1, 2, 3, 4, 5, 6, 7, 8, 9});
  EXPECT_EQ(cache.num_blocks(), 2);  // the third is not full
  EXPECT_THAT(cache.find(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 2), ElementsAre(blocks[0], blocks[1]));
  EXPECT_THAT(cache.find(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 8, 9, 10}, 1), ElementsAre(blocks[0]));
  EXPECT_THAT(cache.find(std::vector<int32_t>{1, 2, 3, 4, 5, 6, 7, 9}, 2), ElementsAre(blocks[0]));
  EXPECT_THAT(cache.find(std::vector<int32_t>{5, 6, 7, 8}, 1), IsEmpty());  // the same tokens elsewhere
  EXPECT_EQ(pool.num_free(), 10);
}

TEST(PrefixCache, GivesBackTheEndOfWhatWasUnusedLongest) {
  BlockPool pool(10);
  PrefixCache cache(4, pool);
  const std::vector<int32_t> one = {1, 1, 1, 1, 2, 2, 2, 2}, two = {1, 1, 1, 1, 3, 3, 3, 3};
  const int32_t first = compute(cache, pool, one)[0];
  compute(cache, pool, two);  // its first block was computed twice: the first stays, and the second has no parent here
  EXPECT_EQ(cache.num_blocks(), 2);
  EXPECT_THAT(cache.find(two, 2), ElementsAre(first));
  cache.evict();
  EXPECT_THAT(cache.find(one, 2), ElementsAre(first));
  pool.share(first);
  EXPECT_THROW(cache.evict(), InvariantError);  // somebody holds it
  pool.release(first);
  cache.evict();
  EXPECT_EQ(pool.num_unkept(), 10);
}

TEST(PrefixCache, ForgettingLeavesHeldBlocksToTheirHolders) {
  BlockPool pool(4);
  PrefixCache cache(4, pool);
  const std::vector<int32_t> prompt = {1, 2, 3, 4};
  const int32_t block = compute(cache, pool, prompt)[0];
  pool.share(block);
  cache.clear();
  EXPECT_THAT(cache.find(prompt, 1), IsEmpty());
  EXPECT_EQ(pool.num_used(), 1);
  pool.release(block);
  EXPECT_EQ(pool.num_unkept(), 4);
}

}  // namespace
}  // namespace temper
