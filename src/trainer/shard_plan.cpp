#include "trainer/shard_plan.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <string>

#include "core/error.h"

namespace temper {
namespace {

constexpr std::string_view kBlockPrefix = "model.layers.";

// "model.layers.3." of a block's parameter, else empty.
std::string block_of(const std::string& name) {
  if (!name.starts_with(kBlockPrefix)) return {};
  return name.substr(0, name.find('.', kBlockPrefix.size()) + 1);
}

}  // namespace

ShardPlan::ShardPlan(const std::vector<ParameterSpec>& layout, Shard shard, int rank, int num_ranks)
    : is_sharded_(shard != Shard::kNone && num_ranks > 1),
      shards_weights_(is_sharded_ && shard == Shard::kFull),
      rank_(rank),
      num_ranks_(num_ranks) {
  std::vector<int64_t> begins;  // of the blocks, then of what lies behind them
  std::string current;
  bool behind = false;
  for (const ParameterSpec& spec : layout) {
    const std::string block = block_of(spec.name);
    if (!block.empty() && block != current) begins.push_back(spec.offset);
    if (block.empty() && !current.empty() && !behind) begins.push_back(spec.offset), behind = true;
    if (!block.empty()) current = block;
  }
  if (!behind) begins.push_back(flat_size(layout));
  segments_.push_back({0, begins.front()});
  for (size_t i = 0; i + 1 < begins.size(); ++i) segments_.push_back({begins[i], begins[i + 1]});
  segments_.push_back({begins.back(), flat_size(layout)});
  if (!is_sharded_) {
    owned_.push_back({0, flat_size(layout)});
    return;
  }
  for (const FlatRange& segment : segments_) {
    const FlatRange mine = own(segment);
    if (mine.size() > 0) owned_.push_back(mine);
  }
}

FlatRange ShardPlan::own(const FlatRange& segment) const {
  FlatRange mine = equal_part(segment, rank_, num_ranks_);
  if (rank_ == num_ranks_ - 1) mine.end = segment.end;
  return mine;
}

FlatRange equal_part(const FlatRange& segment, int rank, int num_ranks) {
  const int64_t size = segment.size() / num_ranks;
  return {segment.begin + rank * size, segment.begin + (rank + 1) * size};
}

FlatRange left_over(const FlatRange& segment, int num_ranks) {
  return {segment.begin + segment.size() / num_ranks * num_ranks, segment.end};
}

std::vector<FlatPart> cut(const std::vector<FlatPart>& parts, const FlatRange& range) {
  std::vector<FlatPart> pieces;
  for (const FlatPart& part : parts) {
    const int64_t begin = std::max(range.begin, part.begin), end = std::min(range.end, part.end());
    if (begin < end) pieces.push_back({begin, part.elements.narrow(0, begin - part.begin, end - begin)});
  }
  return pieces;
}

at::Tensor elements_of(const std::vector<FlatPart>& parts, const FlatRange& range) {
  const std::vector<FlatPart> found = cut(parts, range);
  TEMPER_CHECK(found.size() == 1 && found[0].elements.numel() == range.size(), "[{}, {}) is not in one part",
               range.begin, range.end);
  return found[0].elements;
}

}  // namespace temper
