#include "rollout/block_pool.h"

#include "core/error.h"

namespace temper {

BlockPool::BlockPool(int64_t num_blocks)
    : num_holders_(static_cast<size_t>(num_blocks), 0), kept_(num_holders_.size(), false) {
  TEMPER_CHECK(num_blocks > 0 && num_blocks <= INT32_MAX, "{} blocks", num_blocks);
  free_.reserve(num_holders_.size());
  for (int64_t block = num_blocks - 1; block >= 0; --block) free_.push_back(static_cast<int32_t>(block));
}

int32_t BlockPool::allocate() {
  TEMPER_CHECK(!free_.empty(), "all {} blocks are taken", num_blocks());
  const int32_t block = free_.back();
  free_.pop_back();
  num_holders_[static_cast<size_t>(block)] = 1;
  return block;
}

void BlockPool::share(int32_t block) {
  TEMPER_CHECK(num_holders(block) > 0, "block {} is free and cannot be shared", block);
  if (++num_holders_[static_cast<size_t>(block)] == 2 && kept_[static_cast<size_t>(block)]) --num_idle_;
}

void BlockPool::release(int32_t block) {
  TEMPER_CHECK(num_holders(block) > 0, "block {} is released twice", block);
  const auto index = static_cast<size_t>(block);
  TEMPER_CHECK(!kept_[index] || num_holders_[index] > 1, "block {} is the prefix cache's alone", block);
  if (--num_holders_[index] == 0) free_.push_back(block);
  if (kept_[index] && num_holders_[index] == 1) ++num_idle_;
}

void BlockPool::keep(int32_t block) {
  const auto index = static_cast<size_t>(block);
  TEMPER_CHECK(!kept_[index] && num_holders_[index] > 0, "block {} cannot be kept", block);
  kept_[index] = true;
  ++num_holders_[index];
}

void BlockPool::forget(int32_t block) {
  const auto index = static_cast<size_t>(block);
  TEMPER_CHECK(kept_[index], "block {} is not kept", block);
  if (num_holders_[index] == 1) --num_idle_;
  kept_[index] = false;
  release(block);
}

}  // namespace temper
