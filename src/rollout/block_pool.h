// The blocks of the paged KV cache as numbers: which are free, and how many sequences hold each of the others. Blocks
// of a shared prompt prefix are held by several. No memory lies here (kv_cache.h has it). Owned by the engine, one
// thread.
#pragma once
#include <cstdint>
#include <vector>

namespace temper {

class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  // REQUIRES: num_free() > 0. The block used last comes back first, so memory that was never touched stays untouched.
  int32_t allocate();
  void share(int32_t block);
  // One holder less; the last one frees the block.
  void release(int32_t block);

  int64_t num_blocks() const { return static_cast<int64_t>(num_holders_.size()); }
  int64_t num_free() const { return static_cast<int64_t>(free_.size()); }
  int64_t num_used() const { return num_blocks() - num_free(); }
  int64_t num_holders(int32_t block) const { return num_holders_[static_cast<size_t>(block)]; }

 private:
  std::vector<int32_t> num_holders_;  // [num_blocks]
  std::vector<int32_t> free_;         // a stack
};

}  // namespace temper
