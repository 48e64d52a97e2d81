// Who owns which part of a model's flat buffer. It is cut into segments in the order of the layout (what lies before
// the blocks, each transformer block, what lies behind them), and each segment into one equal part a rank; the few
// elements left over belong to the last rank. So a segment's gradients can be reduced to their owners as soon as they
// are there.
#pragma once
#include <cstdint>
#include <vector>

#include "config/choices.h"
#include "model/parameters.h"

namespace temper {

struct FlatRange {
  int64_t begin = 0, end = 0;  // elements of the flat buffer
  int64_t size() const { return end - begin; }
};

// Elements of a flat buffer, wherever they lie: [begin, end()) of it.
struct FlatPart {
  int64_t begin = 0;
  at::Tensor elements;  // [n]
  int64_t end() const { return begin + elements.numel(); }
};
// What the range has of the parts.
std::vector<FlatPart> cut(const std::vector<FlatPart>& parts, const FlatRange& range);
// The elements of a range that lies in one of the parts.
at::Tensor elements_of(const std::vector<FlatPart>& parts, const FlatRange& range);

// Of a segment: the equal part of a rank, and what is left over behind the equal parts.
FlatRange equal_part(const FlatRange& segment, int rank, int num_ranks);
FlatRange left_over(const FlatRange& segment, int num_ranks);

class ShardPlan {
 public:
  // kNone: every rank owns everything.
  ShardPlan(const std::vector<ParameterSpec>& layout, Shard shard, int rank, int num_ranks);

  bool is_sharded() const { return is_sharded_; }
  // The weights too lie with their owners; else every rank has them all.
  bool shards_weights() const { return shards_weights_; }
  int64_t num_blocks() const { return static_cast<int64_t>(segments_.size()) - 2; }
  // Segment 0 lies before the blocks, 1 + i is block i, the last lies behind them; each may be empty but the blocks.
  const std::vector<FlatRange>& segments() const { return segments_; }
  // What this rank owns of a segment; may be empty.
  FlatRange own(const FlatRange& segment) const;
  // What it updates, ascending.
  const std::vector<FlatRange>& owned() const { return owned_; }

 private:
  bool is_sharded_, shards_weights_;
  int rank_, num_ranks_;
  std::vector<FlatRange> segments_, owned_;
};

}  // namespace temper
