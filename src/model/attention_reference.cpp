// Attention in plain ATen: one sequence at a time, scores and softmax written out.
#include <ATen/ATen.h>

#include <limits>

#include "core/error.h"
#include "model/attention.h"

namespace temper::reference {

namespace {
at::Tensor rows(const at::Tensor& x, int64_t begin, int64_t end) { return x.slice(0, begin, end); }

// q [N, H, D] at the last N positions of k, v [C, KV, D] -> [N, H, D]
at::Tensor attend(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, double scale) {
  const int64_t num_new = q.size(0), num_keys = k.size(0), group = q.size(1) / k.size(1);
  const auto wide = q.scalar_type() == at::kDouble ? at::kDouble : at::kFloat;
  const at::Tensor keys = k.to(wide).repeat_interleave(group, 1).permute({1, 2, 0});  // [H, D, C]
  const at::Tensor values = v.to(wide).repeat_interleave(group, 1).transpose(0, 1);   // [H, C, D]
  at::Tensor scores = at::matmul(q.to(wide).transpose(0, 1), keys) * scale;           // [H, N, C]
  const at::Tensor visible = at::ones({num_new, num_keys}, q.options().dtype(at::kBool)).tril(num_keys - num_new);
  scores = scores.masked_fill(visible.logical_not(), -std::numeric_limits<double>::infinity());
  return at::matmul(scores.softmax(-1), values).transpose(0, 1).to(q.scalar_type());
}
}  // namespace

at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale) {
  std::vector<at::Tensor> pieces, indices;
  for (const AttentionSegment& segment : segments) {
    if (segment.begin == segment.end) continue;
    const auto keys_of = [&](const at::Tensor& x) {
      return at::cat({rows(x, segment.prefix_begin, segment.prefix_end), rows(x, segment.begin, segment.end)});
    };
    pieces.push_back(attend(rows(q, segment.begin, segment.end), keys_of(k), keys_of(v), scale));
    indices.push_back(at::arange(segment.begin, segment.end, q.options().dtype(at::kLong)));
  }
  if (pieces.empty()) return at::zeros_like(q);
  return at::zeros(q.sizes(), q.options()).index_copy(0, at::cat(indices), at::cat(pieces));
}

void store_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, KvCache& cache) {
  const at::Tensor slot = slots.to(cache.k.device());
  const at::Tensor block = slot.div(cache.block_size(), "floor"), offset = slot - block * cache.block_size();
  const at::Tensor panel = offset.div(16, "floor"), lane = offset - panel * 16;
  // [blocks, panels, 16, KV, D] views: one row a slot
  cache.k.permute({0, 2, 4, 1, 3}).index_put_({block, panel, lane}, k.to(cache.k.scalar_type()));
  cache.v.permute({0, 2, 3, 1, 4}).index_put_({block, panel, lane}, v.to(cache.v.scalar_type()));
}

void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out) {
  for (const PagedSequence& sequence : sequences) {
    const int64_t num_blocks = (sequence.context_length + cache.block_size() - 1) / cache.block_size();
    std::vector<int64_t> table(sequence.blocks, sequence.blocks + num_blocks);
    const at::Tensor blocks = at::tensor(table, at::kLong).to(cache.k.device());
    const at::Tensor k = cache.k.index_select(0, blocks).permute({0, 2, 4, 1, 3}).flatten(0, 2);  // [C', KV, D]
    const at::Tensor v = cache.v.index_select(0, blocks).permute({0, 2, 3, 1, 4}).flatten(0, 2);
    const int64_t end = sequence.row_begin + sequence.num_new;
    rows(out, sequence.row_begin, end)
        .copy_(attend(rows(q, sequence.row_begin, end), rows(k, 0, sequence.context_length),
                      rows(v, 0, sequence.context_length), scale));
  }
}

}  // namespace temper::reference
