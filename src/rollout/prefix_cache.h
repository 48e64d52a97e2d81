// Which blocks of the KV cache hold which beginnings of prompts: a group whose prompt begins as an earlier one did (the
// same system prompt) takes those blocks instead of computing them. A tree of full blocks: a block is found by its
// parent's block and its own tokens, compared whole, so that no hash can lie. The cache is one holder of each block it
// lists; the pool counts those that nobody else holds as free, and evict() gives back the one unused longest.
//
// A sequence that holds a listed block holds the blocks before it in the tree: so in the order of last use a block
// never stands behind one that follows it in a prompt, and what is evicted is always an end. Owned by the scheduler,
// one thread.
#pragma once
#include <cstdint>
#include <list>
#include <span>
#include <unordered_map>
#include <vector>

#include "rollout/block_pool.h"

namespace temper {

class PrefixCache {
 public:
  PrefixCache(int64_t block_size, BlockPool& pool) : block_size_(block_size), pool_(pool) {}

  // The blocks of the longest listed beginning of token_ids, at most max_blocks. They are not held for the caller.
  std::vector<int32_t> find(std::span<const int32_t> token_ids, int64_t max_blocks);
  // Lists the blocks of a computed prompt, as far as they are full; stops where another block holds the same tokens.
  void insert(std::span<const int32_t> token_ids, const std::vector<int32_t>& blocks);
  // Frees one block that the cache alone holds. REQUIRES: there is one.
  void evict();
  // Forgets everything: the weights changed, or the memory is gone.
  void clear();

  int64_t num_blocks() const { return static_cast<int64_t>(entries_.size()); }

 private:
  struct Key {
    int32_t parent = -1;  // block before it; -1: the prompt's begin
    std::vector<int32_t> tokens;
    bool operator==(const Key&) const = default;
  };
  struct Hash {
    size_t operator()(const Key& key) const;
  };
  struct Entry {
    int32_t block = 0;
    std::list<Key>::iterator use;  // in uses_
  };
  Key key_of(std::span<const int32_t> token_ids, size_t index, int32_t parent) const;

  int64_t block_size_;
  BlockPool& pool_;
  std::unordered_map<Key, Entry, Hash> entries_;
  std::list<Key> uses_;  // latest use first
};

}  // namespace temper
