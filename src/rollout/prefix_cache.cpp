#include "rollout/prefix_cache.h"

#include "core/error.h"
#include "core/hash.h"

namespace temper {

size_t PrefixCache::Hash::operator()(const Key& key) const {
  return xxh3_64(key.tokens.data(), key.tokens.size() * sizeof(int32_t)) +
         static_cast<size_t>(key.parent) * 0x9E3779B9u;
}

PrefixCache::Key PrefixCache::key_of(std::span<const int32_t> token_ids, size_t index, int32_t parent) const {
  const auto tokens = token_ids.subspan(index * static_cast<size_t>(block_size_), static_cast<size_t>(block_size_));
  return {parent, {tokens.begin(), tokens.end()}};
}

std::vector<int32_t> PrefixCache::find(std::span<const int32_t> token_ids, int64_t max_blocks) {
  std::vector<int32_t> blocks;
  std::vector<std::list<Key>::iterator> used;
  if (entries_.empty()) return blocks;
  for (int64_t i = 0; i < max_blocks; ++i) {
    const auto found = entries_.find(key_of(token_ids, static_cast<size_t>(i), i == 0 ? -1 : blocks.back()));
    if (found == entries_.end()) break;
    blocks.push_back(found->second.block);
    used.push_back(found->second.use);
  }
  for (auto use = used.rbegin(); use != used.rend(); ++use) uses_.splice(uses_.begin(), uses_, *use);  // the first last
  return blocks;
}

void PrefixCache::insert(std::span<const int32_t> token_ids, const std::vector<int32_t>& blocks) {
  std::vector<std::list<Key>::iterator> used;
  const size_t num_full = token_ids.size() / static_cast<size_t>(block_size_);
  for (size_t i = 0; i < num_full; ++i) {
    Key key = key_of(token_ids, i, i == 0 ? -1 : blocks[i - 1]);
    const auto [place, inserted] = entries_.try_emplace(key);
    if (inserted) {
      place->second.block = blocks[i];
      place->second.use = uses_.insert(uses_.begin(), std::move(key));
      pool_.keep(blocks[i]);
    } else if (place->second.block != blocks[i]) {
      break;  // computed twice at the same time: the first stays
    }
    used.push_back(place->second.use);
  }
  for (auto use = used.rbegin(); use != used.rend(); ++use) uses_.splice(uses_.begin(), uses_, *use);
}

void PrefixCache::evict() {
  for (auto use = uses_.rbegin(); use != uses_.rend(); ++use) {
    const auto entry = entries_.find(*use);
    const int32_t block = entry->second.block;
    if (pool_.num_holders(block) > 1) continue;
    uses_.erase(entry->second.use);
    entries_.erase(entry);
    pool_.forget(block);
    return;
  }
  TEMPER_CHECK(false, "none of {} cached blocks is unused", entries_.size());
}

void PrefixCache::clear() {
  for (const auto& [key, entry] : entries_) pool_.forget(entry.block);
  entries_.clear();
  uses_.clear();
}

}  // namespace temper
