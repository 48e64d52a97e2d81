#include "algos/batch.h"

#include <ATen/ATen.h>

#include <numeric>

#include "core/error.h"

namespace temper {
namespace {

// Every array with the dimension it runs over, so that select, to and check treat all of them alike.
enum class Axis { kToken, kCompletion, kGroup };

template <class Batch, class Visit>
void visit_arrays(Batch& batch, const Visit& visit) {
  visit("mask", Axis::kToken, batch.mask);
  visit("reward", Axis::kCompletion, batch.reward);
  visit("rewards", Axis::kCompletion, batch.rewards);
  visit("token_rewards", Axis::kToken, batch.token_rewards);
  visit("baseline_rewards", Axis::kGroup, batch.baseline_rewards);
  visit("margins", Axis::kGroup, batch.margins);
  visit("old_logprobs", Axis::kToken, batch.old_logprobs);
  visit("behavior_logprobs", Axis::kToken, batch.behavior_logprobs);
  visit("ref_logprobs", Axis::kToken, batch.ref_logprobs);
  visit("teacher_logprobs", Axis::kToken, batch.teacher_logprobs);
  visit("old_values", Axis::kToken, batch.old_values);
  visit("stays", Axis::kCompletion, batch.stays);
  visit("counted", Axis::kToken, batch.counted);
  visit("kept", Axis::kToken, batch.kept);
  visit("advantages", Axis::kToken, batch.advantages);
  visit("returns", Axis::kToken, batch.returns);
  visit("is_weights", Axis::kToken, batch.is_weights);
  visit("selected", Axis::kToken, batch.selected);
}

at::Tensor index_tensor(const std::vector<int64_t>& values) { return at::tensor(values, at::kLong); }

}  // namespace

int64_t LossBatch::num_tokens() const { return std::accumulate(lengths.begin(), lengths.end(), int64_t{0}); }

std::vector<int64_t> LossBatch::offsets() const {
  std::vector<int64_t> result(lengths.size() + 1, 0);
  std::partial_sum(lengths.begin(), lengths.end(), result.begin() + 1);
  return result;
}

at::Tensor LossBatch::token_indices(const std::vector<int64_t>& completions) const {
  const std::vector<int64_t> starts = offsets();
  std::vector<int64_t> tokens;
  for (const int64_t i : completions) {
    TEMPER_CHECK(i >= 0 && i < num_completions(), "completion {} of {}", i, num_completions());
    for (int64_t t = starts[i]; t < starts[i + 1]; ++t) tokens.push_back(t);
  }
  return index_tensor(tokens);
}

LossBatch LossBatch::select(const std::vector<int64_t>& completions) const {
  std::vector<int64_t> group_of;
  for (size_t g = 0; g < group_sizes.size(); ++g) group_of.insert(group_of.end(), group_sizes[g], g);

  LossBatch part;
  std::vector<int64_t> groups;
  const at::Tensor tokens = token_indices(completions);
  for (const int64_t i : completions) {
    part.lengths.push_back(lengths[i]);
    if (!truncated.empty()) part.truncated.push_back(truncated[i]);
    if (groups.empty() || groups.back() != group_of[i]) {
      groups.push_back(group_of[i]);
      part.group_sizes.push_back(0);
    }
    ++part.group_sizes.back();
  }

  const at::Tensor indices[] = {tokens, index_tensor(completions), index_tensor(groups)};
  std::vector<at::Tensor> taken;
  visit_arrays(*this, [&](const char*, Axis axis, const at::Tensor& array) {
    if (!array.defined()) return taken.emplace_back(), void();
    taken.push_back(array.index_select(0, indices[static_cast<int>(axis)].to(array.device())));
  });
  size_t next = 0;
  visit_arrays(part, [&](const char*, Axis, at::Tensor& array) { array = taken[next++]; });
  return part;
}

LossBatch LossBatch::to(at::Device device, at::ScalarType dtype) const {
  LossBatch moved = *this;
  visit_arrays(moved, [&](const char*, Axis, at::Tensor& array) {
    if (array.defined()) array = array.to(device, array.scalar_type() == at::kBool ? at::kBool : dtype);
  });
  return moved;
}

void LossBatch::check() const {
  for (const int64_t length : lengths) TEMPER_CHECK(length >= 1, "a completion of {} tokens", length);
  for (const int64_t size : group_sizes) TEMPER_CHECK(size >= 1, "a group of {} completions", size);
  const int64_t in_groups = std::accumulate(group_sizes.begin(), group_sizes.end(), int64_t{0});
  TEMPER_CHECK(in_groups == num_completions(), "groups hold {} completions, lengths {}", in_groups, num_completions());
  TEMPER_CHECK(truncated.empty() || truncated.size() == lengths.size(), "truncated has {} of {} entries",
               truncated.size(), lengths.size());
  TEMPER_CHECK(mask.defined(), "a batch without mask");
  const int64_t sizes[] = {num_tokens(), num_completions(), num_groups()};
  visit_arrays(*this, [&](const char* name, Axis axis, const at::Tensor& array) {
    if (!array.defined()) return;
    const int64_t want = sizes[static_cast<int>(axis)];
    const int64_t dims = array.is_same(rewards) ? 2 : 1;
    TEMPER_CHECK(array.dim() == dims && array.size(0) == want, "{} has {} dimensions and {} rows, expected {} and {}",
                 name, array.dim(), array.dim() ? array.size(0) : 0, dims, want);
  });
  TEMPER_CHECK(mask.scalar_type() == at::kBool, "mask must be bool");
}

GlobalCounts global_counts(const LossBatch& mini_batch) {
  TEMPER_CHECK(mini_batch.kept.defined(), "global_counts before advantages");
  GlobalCounts counts;
  const at::Tensor stays = mini_batch.stays.to(at::kCPU);
  int64_t first = 0;
  for (const int64_t size : mini_batch.group_sizes) {
    if (stays[first].item<bool>()) ++counts.num_groups;
    first += size;
  }
  counts.num_completions = static_cast<double>(stays.sum().item<int64_t>());
  counts.counted_tokens = static_cast<double>(mini_batch.counted.sum().item<int64_t>());
  counts.kept_tokens = static_cast<double>(mini_batch.kept.sum().item<int64_t>());
  return counts;
}

Segments::Segments(const std::vector<int64_t>& lengths, at::Device device)
    : lengths_(index_tensor(lengths).to(device)), index_(at::repeat_interleave(lengths_)) {}

at::Tensor Segments::sum(const at::Tensor& per_token) const {
  // segment_reduce and not index_add: its order of summation is fixed on the GPU too.
  return at::segment_reduce(per_token, "sum", lengths_, {}, {}, 0, /*unsafe=*/true, 0.0);
}

at::Tensor Segments::max(const at::Tensor& per_token) const {
  return at::segment_reduce(per_token, "max", lengths_, {}, {}, 0, /*unsafe=*/true, {});
}

at::Tensor Segments::spread(const at::Tensor& per_completion) const { return per_completion.index_select(0, index_); }

at::Tensor Segments::mean(const at::Tensor& x, const at::Tensor& mask) const {
  const at::Tensor ones = mask.to(x.scalar_type());
  return sum(x * ones) / sum(ones).clamp_min(1);
}

}  // namespace temper
