#include "rollout/block_pool.h"

#include <gtest/gtest.h>

#include "core/error.h"

namespace temper {
namespace {

TEST(BlockPool, ASharedBlockIsFreeWhenItsLastHolderLetsGo) {
  BlockPool pool(3);
  const int32_t block = pool.allocate();
  EXPECT_EQ(block, 0);
  pool.share(block);
  pool.release(block);
  EXPECT_EQ(pool.num_used(), 1);
  pool.release(block);
  EXPECT_EQ(pool.num_used(), 0);
  EXPECT_EQ(pool.allocate(), block);  // warm memory first
  EXPECT_EQ(pool.allocate(), 1);
}

TEST(BlockPool, AKeptBlockCountsAsFreeWhileNobodyElseHoldsIt) {
  BlockPool pool(2);
  const int32_t block = pool.allocate();
  pool.keep(block);
  EXPECT_EQ(pool.num_free(), 1);
  pool.release(block);
  EXPECT_EQ(pool.num_free(), 2);
  EXPECT_EQ(pool.num_unkept(), 1);
  pool.share(block);
  EXPECT_EQ(pool.num_free(), 1);
  pool.forget(block);
  EXPECT_EQ(pool.num_free(), 1);
  pool.release(block);
  EXPECT_EQ(pool.num_unkept(), 2);
}

TEST(BlockPool, MisuseIsNoticed) {
  BlockPool pool(1);
  EXPECT_THROW(pool.release(0), InvariantError);
  EXPECT_THROW(pool.share(0), InvariantError);
  pool.allocate();
  EXPECT_THROW(pool.allocate(), InvariantError);
  EXPECT_THROW(pool.forget(0), InvariantError);
  pool.keep(0);
  EXPECT_THROW(pool.keep(0), InvariantError);
  pool.release(0);
  EXPECT_THROW(pool.release(0), InvariantError);
}

}  // namespace
}  // namespace temper
