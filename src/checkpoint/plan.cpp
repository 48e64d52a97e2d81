#include "checkpoint/plan.h"

#include <algorithm>
#include <cstring>
#include <numeric>
#include <unordered_map>

namespace temper {
namespace {

// Bytes between neighbours along each dimension of a row-major box.
std::vector<int64_t> strides_of(const std::vector<int64_t>& size, int64_t element_bytes) {
  std::vector<int64_t> strides(size.size());
  int64_t stride = element_bytes;
  for (size_t d = size.size(); d-- > 0;) {
    strides[d] = stride;
    stride *= size[d];
  }
  return strides;
}

bool meet(const Box& stored, const WantedBox& wanted) {
  for (size_t d = 0; d < wanted.start.size(); ++d)
    if (stored.start[d] >= wanted.start[d] + wanted.size[d] || wanted.start[d] >= stored.start[d] + stored.size[d])
      return false;
  return true;
}

// REQUIRES: they meet.
BoxCopy intersect(const Box& stored, const WantedBox& wanted) {
  const int64_t element_bytes = dtype_size_bytes(wanted.tensor->dtype);
  BoxCopy copy;
  copy.stored = &stored;
  copy.data = wanted.data;
  copy.stored_bytes = num_elements(stored.size) * element_bytes;
  copy.run_bytes = element_bytes;
  const std::vector<int64_t> in_stored = strides_of(stored.size, element_bytes);
  const std::vector<int64_t> in_wanted = strides_of(wanted.size, element_bytes);
  bool together = true;  // the dimensions further in are whole in both
  for (size_t d = wanted.start.size(); d-- > 0;) {
    const int64_t begin = std::max(stored.start[d], wanted.start[d]);
    const int64_t count = std::min(stored.start[d] + stored.size[d], wanted.start[d] + wanted.size[d]) - begin;
    copy.first_stored += (begin - stored.start[d]) * in_stored[d];
    copy.first_wanted += (begin - wanted.start[d]) * in_wanted[d];
    if (together) {
      copy.run_bytes *= count;
      together = count == stored.size[d] && count == wanted.size[d];
    } else if (count > 1) {
      copy.outer.push_back({count, in_stored[d], in_wanted[d]});
      copy.num_runs *= count;
    }
  }
  std::reverse(copy.outer.begin(), copy.outer.end());
  return copy;
}

// The blocks that the runs touch, from byte `begin` of the file on. Where no gap between runs could hold a whole block,
// those from the first to the last.
void add_blocks(const BoxCopy& copy, size_t dim, int64_t begin, std::vector<BlockRange>* blocks) {
  int64_t span = copy.run_bytes, widest_gap = 0;
  for (size_t d = copy.outer.size(); d-- > dim;) {
    widest_gap = std::max(widest_gap, copy.outer[d].stored_stride - span);
    span += (copy.outer[d].count - 1) * copy.outer[d].stored_stride;
  }
  if (widest_gap < kBlockBytes) {
    blocks->push_back({begin / kBlockBytes, (begin + span + kBlockBytes - 1) / kBlockBytes});
    return;
  }
  for (int64_t i = 0; i < copy.outer[dim].count; ++i)
    add_blocks(copy, dim + 1, begin + i * copy.outer[dim].stored_stride, blocks);
}

std::vector<BlockRange> merge(std::vector<BlockRange> ranges) {
  std::sort(ranges.begin(), ranges.end(), [](const BlockRange& a, const BlockRange& b) { return a.begin < b.begin; });
  std::vector<BlockRange> merged;
  for (const BlockRange& range : ranges) {
    if (!merged.empty() && range.begin <= merged.back().end)
      merged.back().end = std::max(merged.back().end, range.end);
    else
      merged.push_back(range);
  }
  return merged;
}

void count_blocks(const Manifest& manifest, ReadPlan* plan) {
  plan->read_bytes = 0;
  for (size_t i = 0; i < plan->files.size(); ++i)
    for (const BlockRange& range : plan->files[i].blocks)
      plan->read_bytes += std::min(range.end * kBlockBytes, manifest.files[i].size_bytes) - range.begin * kBlockBytes;
}

// The dimension along which most boxes begin at another place.
size_t sweep_dimension(const TensorRecord& tensor) {
  size_t best = 0, most = 0;
  std::vector<int64_t> starts(tensor.boxes.size());
  for (size_t d = 0; d < tensor.shape.size() && most < tensor.boxes.size(); ++d) {
    for (size_t i = 0; i < starts.size(); ++i) starts[i] = tensor.boxes[i].start[d];
    std::sort(starts.begin(), starts.end());
    const auto different = static_cast<size_t>(std::unique(starts.begin(), starts.end()) - starts.begin());
    if (different > most) most = different, best = d;
  }
  return best;
}

// Calls meeting(box, wanted) for each pair that meets. Along one dimension both lists are gone through once, in the
// order of their begins; only boxes that reach that far are compared.
template <class F>
void for_each_meeting(const TensorRecord& tensor, std::vector<const WantedBox*> wanted, F&& meeting) {
  if (tensor.shape.empty() || wanted.size() * tensor.boxes.size() <= 16) {
    for (const WantedBox* one : wanted)
      for (const Box& box : tensor.boxes)
        if (meet(box, *one)) meeting(box, *one);
    return;
  }
  const size_t d = sweep_dimension(tensor);
  std::vector<std::pair<int64_t, const Box*>> boxes;
  for (const Box& box : tensor.boxes) boxes.emplace_back(box.start[d], &box);
  std::sort(boxes.begin(), boxes.end());
  std::sort(wanted.begin(), wanted.end(),
            [d](const WantedBox* a, const WantedBox* b) { return a->start[d] < b->start[d]; });
  std::vector<const Box*> alive;
  size_t next = 0;
  for (const WantedBox* one : wanted) {
    const int64_t end = one->start[d] + one->size[d];
    // Those that end before this begins meet none of the later ones either.
    alive.erase(std::remove_if(alive.begin(), alive.end(),
                               [&](const Box* box) { return box->start[d] + box->size[d] <= one->start[d]; }),
                alive.end());
    for (; next < boxes.size() && boxes[next].first < end; ++next)
      if (boxes[next].first + boxes[next].second->size[d] > one->start[d]) alive.push_back(boxes[next].second);
    for (const Box* box : alive)
      if (meet(*box, *one)) meeting(*box, *one);
  }
}

}  // namespace

BoxCopy::Run BoxCopy::run(int64_t index) const {
  Run place{first_stored, first_wanted};
  for (size_t d = outer.size(); d-- > 0;) {
    const int64_t coordinate = index % outer[d].count;
    index /= outer[d].count;
    place.stored += coordinate * outer[d].stored_stride;
    place.wanted += coordinate * outer[d].wanted_stride;
  }
  return place;
}

int64_t BoxCopy::first_run(int64_t position) const {
  int64_t low = 0, high = num_runs;
  while (low < high) {
    const int64_t middle = low + (high - low) / 2;
    if (run(middle).stored + run_bytes > position)
      high = middle;
    else
      low = middle + 1;
  }
  return low;
}

std::vector<BoxCopy>::const_iterator FilePlan::first(int64_t position) const {
  return std::upper_bound(copies.begin(), copies.end(), position,
                          [](int64_t at, const BoxCopy& copy) { return at < copy.stored->offset + copy.stored_bytes; });
}

char* FilePlan::direct(int64_t begin, int64_t end) const {
  const auto copy = first(begin);
  if (copy == copies.end() || copy->stored->offset > begin || copy->stored->offset + copy->stored_bytes < end)
    return nullptr;
  if (copy + 1 != copies.end() && (copy + 1)->stored == copy->stored) return nullptr;  // wanted in several places
  const int64_t within = begin - copy->stored->offset, index = copy->first_run(within);
  if (index == copy->num_runs) return nullptr;
  const BoxCopy::Run run = copy->run(index);
  if (run.stored > within || run.stored + copy->run_bytes < end - copy->stored->offset) return nullptr;
  return copy->data + run.wanted + (within - run.stored);
}

void FilePlan::copy(int64_t begin, int64_t end, const char* bytes) const {
  for (auto copy = first(begin); copy != copies.end() && copy->stored->offset < end; ++copy) {
    const int64_t from = begin - copy->stored->offset, to = end - copy->stored->offset;  // in the stored box
    for (int64_t i = copy->first_run(from); i < copy->num_runs; ++i) {
      const BoxCopy::Run run = copy->run(i);
      if (run.stored >= to) break;
      const int64_t low = std::max(from, run.stored), high = std::min(to, run.stored + copy->run_bytes);
      std::memcpy(copy->data + run.wanted + (low - run.stored), bytes + (low - from), static_cast<size_t>(high - low));
    }
  }
}

FilePlan whole_file(const FileRecord& record) {
  FilePlan plan;
  plan.blocks = {{0, static_cast<int64_t>(record.blocks.size())}};
  return plan;
}

ReadPlan plan_reads(const Manifest& manifest, const std::vector<WantedBox>& wanted) {
  ReadPlan plan;
  plan.files.resize(manifest.files.size());
  std::unordered_map<const TensorRecord*, std::vector<const WantedBox*>> by_tensor;
  for (const WantedBox& one : wanted) by_tensor[one.tensor].push_back(&one);
  for (const TensorRecord& tensor : manifest.tensors) {
    const auto found = by_tensor.find(&tensor);
    if (found == by_tensor.end()) continue;
    for_each_meeting(tensor, found->second, [&](const Box& box, const WantedBox& one) {
      const BoxCopy copy = intersect(box, one);
      FilePlan& file = plan.files[static_cast<size_t>(box.shard)];
      add_blocks(copy, 0, box.offset + copy.first_stored, &file.blocks);
      plan.needed_bytes += copy.run_bytes * copy.num_runs;
      file.copies.push_back(copy);
    });
  }
  for (FilePlan& file : plan.files) {
    file.blocks = merge(std::move(file.blocks));
    std::sort(file.copies.begin(), file.copies.end(),
              [](const BoxCopy& a, const BoxCopy& b) { return a.stored->offset < b.stored->offset; });
  }
  count_blocks(manifest, &plan);
  return plan;
}

void add_blocks_between(const Manifest& manifest, int rank, int num_ranks, ReadPlan* plan) {
  std::vector<std::vector<BlockRange>> held(manifest.files.size());
  for (const TensorRecord& tensor : manifest.tensors)
    for (const Box& box : tensor.boxes) {
      const int64_t end = box.offset + num_elements(box.size) * dtype_size_bytes(tensor.dtype);
      held[static_cast<size_t>(box.shard)].push_back({box.offset / kBlockBytes, (end + kBlockBytes - 1) / kBlockBytes});
    }
  for (size_t i = static_cast<size_t>(rank); i < held.size(); i += static_cast<size_t>(num_ranks)) {
    std::vector<BlockRange>& blocks = plan->files[i].blocks;
    int64_t next = 0;  // behind what is held so far
    for (const BlockRange& range : merge(std::move(held[i]))) {
      if (next < range.begin) blocks.push_back({next, range.begin});
      next = range.end;
    }
    const auto num_blocks = static_cast<int64_t>(manifest.files[i].blocks.size());
    if (next < num_blocks) blocks.push_back({next, num_blocks});
    blocks = merge(std::move(blocks));
  }
  count_blocks(manifest, plan);
}

}  // namespace temper
