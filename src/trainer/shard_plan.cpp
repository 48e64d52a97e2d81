#include "trainer/shard_plan.h"

#include <string>
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
    FlatRange mine = part(segment, rank);
    if (rank == num_ranks - 1) mine.end = segment.end;
    if (mine.size() > 0) owned_.push_back(mine);
  }
}

FlatRange ShardPlan::part(const FlatRange& segment, int rank) const {
  const int64_t size = segment.size() / num_ranks_;
  return {segment.begin + rank * size, segment.begin + (rank + 1) * size};
}

FlatRange ShardPlan::rest(const FlatRange& segment) const {
  return {segment.begin + segment.size() / num_ranks_ * num_ranks_, segment.end};
}

}  // namespace temper
