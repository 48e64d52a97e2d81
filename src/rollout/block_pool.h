// The blocks of the paged KV cache as numbers: which are free, and how many sequences hold each of the others. Blocks
// of a shared prompt prefix are held by several. A block that the prefix cache keeps has it as one more holder and,
// while nobody else holds it, counts as free: somebody must evict it before it is allocated. No memory lies here
// (kv_cache.h has it). Owned by the engine, one thread.
#pragma once
#include <cstdint>
#include <vector>

namespace temper {

class BlockPool {
 public:
  explicit BlockPool(int64_t num_blocks);

  // REQUIRES: num_unkept() > 0. The block used last comes back first, so memory that was never touched stays untouched.
  int32_t allocate();
  void share(int32_t block);
  // One holder less; the last one frees the block.
  void release(int32_t block);

  // The prefix cache becomes a holder, and ceases to be one. REQUIRES: keep: held, not kept; forget: kept.
  void keep(int32_t block);
  void forget(int32_t block);

  int64_t num_blocks() const { return static_cast<int64_t>(num_holders_.size()); }
  int64_t num_free() const { return num_unkept() + num_idle_; }
  int64_t num_unkept() const { return static_cast<int64_t>(free_.size()); }  // free at once
  int64_t num_used() const { return num_blocks() - num_free(); }
  bool kept(int32_t block) const { return kept_[static_cast<size_t>(block)]; }
  int64_t num_holders(int32_t block) const { return num_holders_[static_cast<size_t>(block)]; }

 private:
  std::vector<int32_t> num_holders_;  // [num_blocks]
  std::vector<bool> kept_;            // [num_blocks] by the prefix cache
  std::vector<int32_t> free_;         // a stack
  int64_t num_idle_ = 0;              // kept, with no other holder
};

}  // namespace temper
