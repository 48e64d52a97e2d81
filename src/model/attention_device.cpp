#include "model/attention_device.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

namespace temper::device {
namespace {

// Rows in the making, on the CPU.
struct Rows {
  std::vector<int64_t> queries, keys;
  std::vector<int32_t> query_ends{0}, key_ends{0};
  int64_t max_queries = 0, max_keys = 0;

  void end_sequence() {
    const auto new_queries = static_cast<int64_t>(queries.size()) - query_ends.back();
    const auto new_keys = static_cast<int64_t>(keys.size()) - key_ends.back();
    query_ends.push_back(static_cast<int32_t>(queries.size()));
    key_ends.push_back(static_cast<int32_t>(keys.size()));
    max_queries = std::max(max_queries, new_queries);
    max_keys = std::max(max_keys, new_keys);
  }
  void add(std::vector<int64_t>& rows, int64_t begin, int64_t end) {
    for (int64_t row = begin; row < end; ++row) rows.push_back(row);
  }
  static bool is_identity(const std::vector<int64_t>& rows, int64_t num_rows) {
    if (static_cast<int64_t>(rows.size()) != num_rows) return false;
    for (int64_t i = 0; i < num_rows; ++i)
      if (rows[static_cast<size_t>(i)] != i) return false;
    return true;
  }
  RaggedLayout on(at::Device device, int64_t num_query_rows, int64_t num_key_rows) const {
    RaggedLayout layout;
    if (!is_identity(queries, num_query_rows)) layout.query_rows = at::tensor(queries, at::kLong).to(device);
    if (!is_identity(keys, num_key_rows)) layout.key_rows = at::tensor(keys, at::kLong).to(device);
    layout.query_ends = at::tensor(query_ends, at::kInt).to(device);
    layout.key_ends = at::tensor(key_ends, at::kInt).to(device);
    layout.max_queries = max_queries;
    layout.max_keys = max_keys;
    return layout;
  }
};

// What the last layout was made from.
template <class Make>
const RaggedLayout& remembered(std::vector<int64_t> key, const Make& make) {
  thread_local std::vector<int64_t> last;
  thread_local RaggedLayout layout;
  if (key != last) {
    layout = make();
    last = std::move(key);
  }
  return layout;
}

const RaggedLayout& remembered_layout(const std::vector<AttentionSegment>& segments, const at::Tensor& q) {
  std::vector<int64_t> key{0, q.size(0), q.device().index()};
  for (const AttentionSegment& s : segments) key.insert(key.end(), {s.begin, s.end, s.prefix_begin, s.prefix_end});
  return remembered(std::move(key), [&] { return layout_of(segments, q.size(0), q.device()); });
}

const RaggedLayout& remembered_layout(const std::vector<PagedSequence>& sequences, const at::Tensor& q,
                                      int64_t block_size) {
  std::vector<int64_t> key{1, q.size(0), q.device().index(), block_size};
  for (const PagedSequence& s : sequences) {
    key.insert(key.end(), {s.context_length, s.num_new, s.row_begin});
    key.insert(key.end(), s.blocks, s.blocks + (s.context_length + block_size - 1) / block_size);
  }
  return remembered(std::move(key), [&] { return layout_of(sequences, q.size(0), block_size, q.device()); });
}

at::Tensor flash(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const RaggedLayout& layout,
                 double scale) {
  // Causal by the last row: the queries are the last positions of their keys.
  return std::get<0>(at::_flash_attention_forward(q, k, v, layout.query_ends, layout.key_ends, layout.max_queries,
                                                  layout.max_keys, /*dropout_p=*/0.0, /*is_causal=*/true,
                                                  /*return_debug_mask=*/false, scale));
}

// Rows by index. Where a gradient comes back, rows that occur several times get its sum in f32.
at::Tensor gathered(const at::Tensor& x, const at::Tensor& rows) {
  if (!rows.defined()) return x;
  if (at::GradMode::is_enabled() && x.requires_grad())
    return x.to(at::kFloat).index_select(0, rows).to(x.scalar_type());
  return x.index_select(0, rows);
}

}  // namespace

RaggedLayout layout_of(const std::vector<AttentionSegment>& segments, int64_t num_rows, at::Device device) {
  Rows rows;
  for (const AttentionSegment& s : segments) {
    if (s.begin == s.end) continue;
    rows.add(rows.queries, s.begin, s.end);
    rows.add(rows.keys, s.prefix_begin, s.prefix_end);
    rows.add(rows.keys, s.begin, s.end);
    rows.end_sequence();
  }
  return rows.on(device, num_rows, num_rows);
}

RaggedLayout layout_of(const std::vector<PagedSequence>& sequences, int64_t num_rows, int64_t block_size,
                       at::Device device) {
  Rows rows;
  for (const PagedSequence& s : sequences) {
    if (s.num_new == 0) continue;
    rows.add(rows.queries, s.row_begin, s.row_begin + s.num_new);
    for (int64_t position = 0; position < s.context_length; ++position)
      rows.keys.push_back(s.blocks[position / block_size] * block_size + position % block_size);
    rows.end_sequence();
  }
  return rows.on(device, num_rows, /*num_key_rows=*/-1);
}

bool takes(const at::Tensor& q) {
  return q.is_cuda() && q.scalar_type() == at::kBFloat16 && q.size(2) % 8 == 0 && q.size(2) <= 256 && q.size(0) > 0;
}

at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale) {
  const RaggedLayout layout = remembered_layout(segments, q);
  if (layout.max_queries == 0) return at::zeros_like(q);
  const at::Tensor out =
      flash(gathered(q, layout.query_rows), gathered(k, layout.key_rows), gathered(v, layout.key_rows), layout, scale);
  if (!layout.query_rows.defined()) return out;
  return at::zeros(q.sizes(), q.options()).index_copy(0, layout.query_rows, out);
}

void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out) {
  const RaggedLayout layout = remembered_layout(sequences, q, cache.block_size());
  if (layout.max_queries == 0) return;
  const at::Tensor attended = flash(gathered(q, layout.query_rows), cache.k_rows().index_select(0, layout.key_rows),
                                    cache.v_rows().index_select(0, layout.key_rows), layout, scale);
  if (layout.query_rows.defined())
    out.index_copy_(0, layout.query_rows, attended);
  else
    out.copy_(attended);
}

}  // namespace temper::device
