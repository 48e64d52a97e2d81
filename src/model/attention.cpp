// Packed attention: lays the keys out in panels, shares the tasks out, and hangs the kernels into autograd.
#include "model/attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>
#include <map>
#include <numeric>

#include "core/error.h"
#include "model/attention_device.h"
#include "model/attention_kernels.h"
#include "model/cpu_dispatch.h"

namespace temper {

namespace {

using Segments = std::vector<AttentionSegment>;

// Which row of the batch each lane of each panel holds, and the panels of each segment from its position 0 on. Panels
// of a prefix are shared; where a prefix ends inside a panel, each completion gets its own copy of that panel's start.
struct PanelPlan {
  std::vector<int32_t> rows;  // [num_panels * 16], -1: none
  std::vector<std::vector<int32_t>> segment_panels;
  int64_t num_panels() const { return static_cast<int64_t>(rows.size()) / kPanelKeys; }

  explicit PanelPlan(const Segments& segments) {
    std::map<std::pair<int64_t, int64_t>, int32_t> spans;  // rows without a prefix -> first panel
    const auto span_panels = [&](int64_t begin, int64_t end) {
      const auto [entry, is_new] = spans.try_emplace({begin, end}, static_cast<int32_t>(num_panels()));
      if (is_new) append(begin, end, 0, 0);
      return entry->second;
    };
    for (const AttentionSegment& segment : segments) {
      std::vector<int32_t>& panels = segment_panels.emplace_back();
      const int64_t prefix = segment.prefix_end - segment.prefix_begin, own = segment.end - segment.begin;
      if (own == 0) continue;
      panels.resize((prefix + own + kPanelKeys - 1) / kPanelKeys);
      if (prefix == 0) {
        std::iota(panels.begin(), panels.end(), span_panels(segment.begin, segment.end));
        continue;
      }
      const int64_t num_shared = prefix / kPanelKeys;
      const int32_t shared = span_panels(segment.prefix_begin, segment.prefix_end);
      std::iota(panels.begin(), panels.begin() + num_shared, shared);
      std::iota(panels.begin() + num_shared, panels.end(), static_cast<int32_t>(num_panels()));
      append(segment.prefix_begin + num_shared * kPanelKeys, segment.prefix_end, segment.begin, segment.end);
    }
  }

 private:
  void append(int64_t first, int64_t first_end, int64_t second, int64_t second_end) {
    for (int64_t row = first; row < first_end; ++row) rows.push_back(static_cast<int32_t>(row));
    for (int64_t row = second; row < second_end; ++row) rows.push_back(static_cast<int32_t>(row));
    while (rows.size() % kPanelKeys != 0) rows.push_back(-1);
  }
};

struct PanelBuffer {
  at::Tensor storage;  // f32 [KV, num_panels, 16 * D] and a tail that the last padded column may read
  int64_t num_panels = 0, panel_size = 0;

  PanelBuffer() = default;
  PanelBuffer(int64_t num_kv_heads, int64_t panels, int64_t head_dim)
      : storage(at::empty({num_kv_heads * panels * kPanelKeys * head_dim + kPanelKeys}, at::kFloat)),
        num_panels(panels),
        panel_size(kPanelKeys * head_dim) {
    storage.narrow(0, storage.numel() - kPanelKeys, kPanelKeys).zero_();
  }
  float* panel(int64_t kv_head, int64_t index) const {
    if (!storage.defined()) return nullptr;
    return storage.data_ptr<float>() + (kv_head * num_panels + index) * panel_size;
  }
  std::vector<const void*> panels_of(int64_t kv_head, const std::vector<int32_t>& panels) const {
    std::vector<const void*> result;
    result.reserve(panels.size());
    for (int32_t index : panels) result.push_back(panel(kv_head, index));
    return result;
  }
};

RowStrides strides_of(const at::Tensor& x) { return {x.stride(0), x.stride(1)}; }
bool is_bf16(const at::Tensor& x) { return x.scalar_type() == at::kBFloat16; }

// First element of a head of token 0.
const void* head_pointer(const at::Tensor& x, int64_t head) {
  return static_cast<const char*>(x.const_data_ptr()) + head * x.stride(1) * x.element_size();
}
void* head_pointer_mut(const at::Tensor& x, int64_t head) {
  return static_cast<char*>(x.mutable_data_ptr()) + head * x.stride(1) * x.element_size();
}
template <class T>
T* token_pointer(T* head, const at::Tensor& x, int64_t token) {
  using Byte = std::conditional_t<std::is_const_v<T>, const char, char>;
  return static_cast<Byte*>(head) + token * x.stride(0) * x.element_size();
}

void pack_panels(const PanelPlan& plan, const at::Tensor& x, const PanelBuffer& transposed,
                 const PanelBuffer& as_rows) {
  const int64_t num_panels = plan.num_panels();
  const AttentionKernels& kernels = attention_kernels();
  at::parallel_for(0, x.size(1) * num_panels, 8, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const int64_t head = i / num_panels, panel = i % num_panels;
      PackTask task;
      task.rows = head_pointer(x, head);
      task.token_stride = x.stride(0);
      task.row_of = plan.rows.data() + panel * kPanelKeys;
      task.head_dim = x.size(2);
      task.bf16 = is_bf16(x);
      task.transposed = transposed.panel(head, panel);
      task.as_rows = as_rows.panel(head, panel);
      kernels.pack(task);
    }
  });
}

// out [T, H, D], lse f32 [T, H] or undefined.
void forward_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments, double scale,
                 const at::Tensor& out, const at::Tensor& lse) {
  const int64_t num_kv_heads = k.size(1), head_dim = q.size(2), group = q.size(1) / num_kv_heads;
  const PanelPlan plan(segments);
  const PanelBuffer k_panels(num_kv_heads, plan.num_panels(), head_dim);
  const PanelBuffer v_panels(num_kv_heads, plan.num_panels(), head_dim);
  pack_panels(plan, k, k_panels, {});
  pack_panels(plan, v, {}, v_panels);

  struct Block {
    int64_t segment, token, num_tokens, cost;
  };
  std::vector<Block> blocks;
  const int64_t block_tokens = tokens_of_a_task(group);
  for (size_t s = 0; s < segments.size(); ++s) {
    const int64_t own = segments[s].end - segments[s].begin, prefix = segments[s].prefix_end - segments[s].prefix_begin;
    for (int64_t token = 0; token < own; token += block_tokens) {
      const int64_t num_tokens = std::min(block_tokens, own - token);
      blocks.push_back({static_cast<int64_t>(s), token, num_tokens, num_tokens * (prefix + token + num_tokens)});
    }
  }
  std::stable_sort(blocks.begin(), blocks.end(), [](const Block& a, const Block& b) { return a.cost > b.cost; });

  const AttentionKernels& kernels = attention_kernels();
  parallel_tasks(static_cast<int64_t>(blocks.size()) * num_kv_heads, [&](int64_t i) {
    const Block& block = blocks[i / num_kv_heads];
    const int64_t kv_head = i % num_kv_heads, first_row = segments[block.segment].begin + block.token;
    const auto keys = k_panels.panels_of(kv_head, plan.segment_panels[block.segment]);
    const auto values = v_panels.panels_of(kv_head, plan.segment_panels[block.segment]);
    QueryRun run;
    run.q = token_pointer(head_pointer(q, kv_head * group), q, first_row);
    run.out = token_pointer(head_pointer_mut(out, kv_head * group), out, first_row);
    if (lse.defined()) run.lse = lse.data_ptr<float>() + first_row * lse.stride(0) + kv_head * group;
    run.num_tokens = block.num_tokens;
    run.first_position = segments[block.segment].prefix_end - segments[block.segment].prefix_begin + block.token;
    run.k_panels = keys.data();
    run.v_panels = values.data();
    ForwardTask task;
    task.runs = &run;
    task.num_runs = 1;
    task.group = group;
    task.head_dim = head_dim;
    task.q = strides_of(q);
    task.out = strides_of(out);
    task.lse_token_stride = lse.defined() ? lse.stride(0) : 0;
    task.scale = static_cast<float>(scale);
    task.query_bf16 = is_bf16(q);
    kernels.forward(task);
  });
}

// Segments that share rows, in their order in the batch: their dk and dv must be summed by one thread.
struct Family {
  std::vector<int64_t> segments;
  int64_t cost = 0, num_tiles = 0;
  bool one_prefix = true;  // positions of shared rows agree, so the tiles of the family are separate work
};

std::vector<Family> families_of(const Segments& segments) {
  struct Interval {
    int64_t begin, end, segment;
  };
  std::vector<Interval> intervals;
  for (size_t s = 0; s < segments.size(); ++s) {
    const AttentionSegment& segment = segments[s];
    if (segment.begin == segment.end) continue;
    intervals.push_back({segment.begin, segment.end, static_cast<int64_t>(s)});
    if (segment.prefix_begin < segment.prefix_end)
      intervals.push_back({segment.prefix_begin, segment.prefix_end, static_cast<int64_t>(s)});
  }
  std::sort(intervals.begin(), intervals.end(), [](const auto& a, const auto& b) { return a.begin < b.begin; });
  std::vector<int64_t> parent(segments.size());
  std::iota(parent.begin(), parent.end(), 0);
  const auto root = [&](int64_t s) {
    while (parent[s] != s) s = parent[s] = parent[parent[s]];
    return s;
  };
  int64_t reach = -1, holder = 0;
  for (const Interval& interval : intervals) {
    if (interval.begin < reach) parent[root(interval.segment)] = root(holder);
    if (interval.end > reach) {
      reach = interval.end;
      holder = interval.segment;
    }
  }
  std::map<int64_t, Family> by_root;
  for (size_t s = 0; s < segments.size(); ++s) {
    const AttentionSegment& segment = segments[s];
    const int64_t own = segment.end - segment.begin, prefix = segment.prefix_end - segment.prefix_begin;
    if (own == 0) continue;
    Family& family = by_root[root(static_cast<int64_t>(s))];
    const AttentionSegment& first = segments[family.segments.empty() ? s : family.segments.front()];
    const auto origin = [](const AttentionSegment& x) {
      return x.prefix_begin < x.prefix_end ? x.prefix_begin : x.begin;
    };
    family.one_prefix = family.one_prefix && origin(first) == origin(segment);
    family.segments.push_back(static_cast<int64_t>(s));
    family.cost += own * (2 * prefix + own + kPanelKeys);
    family.num_tiles = std::max(family.num_tiles, (prefix + own + kTileKeys - 1) / kTileKeys);
  }
  std::vector<Family> families;
  for (auto& [_, family] : by_root) families.push_back(std::move(family));
  std::stable_sort(families.begin(), families.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
  return families;
}

// One task a family and KV head does all five products; when such tasks would leave threads idle, the work is cut
// finer, into dq by blocks of queries and dk, dv by tiles of keys, which costs seven products. Both add in the same
// order.
bool prefer_fine_tasks(const std::vector<Family>& families, int64_t num_kv_heads) {
  const int64_t num_threads = at::get_num_threads();
  std::vector<double> load(num_threads, 0.0);
  double total = 0;
  for (const Family& family : families)
    for (int64_t h = 0; h < num_kv_heads; ++h) {
      *std::min_element(load.begin(), load.end()) += static_cast<double>(family.cost);
      total += static_cast<double>(family.cost);
    }
  return *std::max_element(load.begin(), load.end()) > 1.5 * total / static_cast<double>(num_threads);
}

// Writes grad_q, grad_k, grad_v (strided views in q's dtype; rows of no segment are left alone).
void backward_cpu(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const at::Tensor& out,
                  const at::Tensor& lse, const at::Tensor& grad_out, const Segments& segments, double scale,
                  const at::Tensor& grad_q, const at::Tensor& grad_k, const at::Tensor& grad_v) {
  const int64_t num_tokens = q.size(0), num_kv_heads = k.size(1), head_dim = q.size(2),
                group = q.size(1) / num_kv_heads;
  const int64_t stride = padded_head_dim(head_dim);
  const PanelPlan plan(segments);
  const PanelBuffer k_transposed(num_kv_heads, plan.num_panels(), head_dim);
  const PanelBuffer k_rows(num_kv_heads, plan.num_panels(), head_dim);
  const PanelBuffer v_transposed(num_kv_heads, plan.num_panels(), head_dim);
  pack_panels(plan, k, k_transposed, k_rows);
  pack_panels(plan, v, v_transposed, {});
  const at::Tensor sums = at::zeros({2, num_kv_heads, num_tokens, stride}, at::kFloat);  // dk and dv

  const std::vector<Family> families = families_of(segments);
  struct Work {
    int64_t family, kv_head;
    bool queries, keys;
    int64_t segment = -1;  // index in the family's, -1: all
    int64_t first_token = 0, last_token = INT64_MAX, first_tile = 0, last_tile = INT64_MAX;
  };
  std::vector<Work> works;
  const bool fine = prefer_fine_tasks(families, num_kv_heads);
  const int64_t block_tokens = tokens_of_a_task(group);
  for (int64_t f = 0; f < static_cast<int64_t>(families.size()); ++f)
    for (int64_t h = 0; h < num_kv_heads; ++h) {
      const Family& family = families[f];
      if (!fine || !family.one_prefix) {
        works.push_back({f, h, true, true});
        continue;
      }
      for (int64_t tile = 0; tile < family.num_tiles; ++tile)
        works.push_back({f, h, false, true, -1, 0, INT64_MAX, tile, tile + 1});
      for (int64_t s = 0; s < static_cast<int64_t>(family.segments.size()); ++s) {
        const AttentionSegment& segment = segments[family.segments[s]];
        for (int64_t token = 0; token < segment.end - segment.begin; token += block_tokens)
          works.push_back({f, h, true, false, s, token, token + block_tokens, 0, INT64_MAX});
      }
    }

  const AttentionKernels& kernels = attention_kernels();
  parallel_tasks(static_cast<int64_t>(works.size()), [&](int64_t i) {
    const Work& work = works[i];
    const Family& family = families[work.family];
    std::vector<BackwardSegment> parts;
    std::vector<std::vector<const void*>> pointers;
    for (int64_t s = 0; s < static_cast<int64_t>(family.segments.size()); ++s) {
      if (work.segment >= 0 && work.segment != s) continue;
      const AttentionSegment& segment = segments[family.segments[s]];
      const std::vector<int32_t>& panels = plan.segment_panels[family.segments[s]];
      for (const PanelBuffer* buffer : {&k_transposed, &k_rows, &v_transposed})
        pointers.push_back(buffer->panels_of(work.kv_head, panels));
      const auto* last = &pointers.back();
      parts.push_back({segment.begin, segment.end, segment.prefix_begin, segment.prefix_end - segment.prefix_begin,
                       last[-2].data(), last[-1].data(), last[0].data()});
    }
    BackwardTask task;
    task.segments = parts.data();
    task.num_segments = static_cast<int64_t>(parts.size());
    task.group = group;
    task.head_dim = head_dim;
    task.q = head_pointer(q, work.kv_head * group);
    task.out = head_pointer(out, work.kv_head * group);
    task.grad_out = head_pointer(grad_out, work.kv_head * group);
    task.lse = lse.const_data_ptr<float>() + work.kv_head * group;
    if (work.queries) task.grad_q = head_pointer_mut(grad_q, work.kv_head * group);
    if (work.keys) {
      task.grad_k = sums.data_ptr<float>() + work.kv_head * num_tokens * stride;
      task.grad_v = task.grad_k + num_kv_heads * num_tokens * stride;
    }
    task.q_strides = strides_of(q);
    task.out_strides = strides_of(out);
    task.grad_out_strides = strides_of(grad_out);
    task.grad_q_strides = strides_of(grad_q);
    task.lse_token_stride = lse.stride(0);
    task.first_token = work.first_token;
    task.last_token = work.last_token;
    task.first_tile = work.first_tile;
    task.last_tile = work.last_tile;
    task.scale = static_cast<float>(scale);
    task.bf16 = is_bf16(q);
    kernels.backward(task);
  });
  grad_k.copy_(sums[0].transpose(0, 1).narrow(2, 0, head_dim));
  grad_v.copy_(sums[1].transpose(0, 1).narrow(2, 0, head_dim));
}

void check_inputs(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v, const Segments& segments) {
  TEMPER_CHECK(q.dim() == 3 && k.dim() == 3 && v.dim() == 3, "q, k, v have {}, {}, {} dimensions, not 3", q.dim(),
               k.dim(), v.dim());
  TEMPER_CHECK(k.sizes() == v.sizes() && k.size(0) == q.size(0) && k.size(2) == q.size(2) && q.size(1) % k.size(1) == 0,
               "shapes do not fit: q {}, k {}, v {}", q.sizes(), k.sizes(), v.sizes());
  TEMPER_CHECK(q.scalar_type() == k.scalar_type() && q.scalar_type() == v.scalar_type(),
               "dtypes differ: q {}, k {}, v {}", q.scalar_type(), k.scalar_type(), v.scalar_type());
  const int64_t num_rows = q.size(0);
  for (const AttentionSegment& s : segments)
    TEMPER_CHECK(0 <= s.begin && s.begin <= s.end && s.end <= num_rows && 0 <= s.prefix_begin &&
                     s.prefix_begin <= s.prefix_end && s.prefix_end <= num_rows,
                 "segment [{}, {}) with prefix [{}, {}) does not lie in {} rows", s.begin, s.end, s.prefix_begin,
                 s.prefix_end, num_rows);
}

bool use_kernels(const at::Tensor& q) {
  return q.device().is_cpu() && (q.scalar_type() == at::kFloat || q.scalar_type() == at::kBFloat16) &&
         q.size(2) <= kMaxHeadDim;
}

bool covers_all_rows(const Segments& segments, int64_t num_rows) {
  int64_t covered = 0;
  for (const AttentionSegment& s : segments) covered += s.end - s.begin;
  return covered == num_rows;
}

at::Tensor with_dense_rows(const at::Tensor& x) { return x.stride(2) == 1 || x.size(2) == 1 ? x : x.contiguous(); }

at::Tensor new_output(const at::Tensor& q, const Segments& segments) {
  return covers_all_rows(segments, q.size(0)) ? at::empty(q.sizes(), q.options()) : at::zeros(q.sizes(), q.options());
}

// Saved: the inputs (one fused tensor or q, k, v), the output and lse.
class PackedAttention : public torch::autograd::Function<PackedAttention> {
 public:
  // fused [T, H + 2 KV, D] and num_kv_heads > 0, or q with k and v.
  static at::Tensor forward(torch::autograd::AutogradContext* context, const at::Tensor& q_or_fused,
                            const std::optional<at::Tensor>& optional_k, const std::optional<at::Tensor>& optional_v,
                            int64_t num_kv_heads, const std::vector<int64_t>& rows, double scale) {
    const at::Tensor k = optional_k.value_or(at::Tensor()), v = optional_v.value_or(at::Tensor());
    const Segments segments = unflatten(rows);
    const Parts parts = split(q_or_fused, k, v, num_kv_heads);
    const at::Tensor out = new_output(parts.q, segments);
    const at::Tensor lse = at::empty({parts.q.size(0), parts.q.size(1)}, at::kFloat);
    forward_cpu(parts.q, parts.k, parts.v, segments, scale, out, lse);
    context->save_for_backward({q_or_fused, k, v, out, lse});
    context->saved_data["num_kv_heads"] = num_kv_heads;
    context->saved_data["rows"] = rows;
    context->saved_data["scale"] = scale;
    return out;
  }

  static std::vector<at::Tensor> backward(torch::autograd::AutogradContext* context, std::vector<at::Tensor> grads) {
    const auto saved = context->get_saved_variables();
    const int64_t num_kv_heads = context->saved_data["num_kv_heads"].toInt();
    const Segments segments = unflatten(context->saved_data["rows"].toIntVector());
    const double scale = context->saved_data["scale"].toDouble();
    const Parts parts = split(saved[0], saved[1], saved[2], num_kv_heads);
    const auto new_gradient = [&](const at::Tensor& x) {
      return covers_all_rows(segments, x.size(0)) ? at::empty(x.sizes(), x.options())
                                                  : at::zeros(x.sizes(), x.options());
    };
    at::Tensor grad_first = new_gradient(saved[0]), grad_k, grad_v;
    if (num_kv_heads == 0) {
      grad_k = new_gradient(saved[1]);
      grad_v = new_gradient(saved[2]);
    }
    const Parts grad_parts = split(grad_first, grad_k, grad_v, num_kv_heads);
    const at::Tensor grad_out = with_dense_rows(grads[0].to(parts.q.scalar_type()));
    backward_cpu(parts.q, parts.k, parts.v, saved[3], saved[4], grad_out, segments, scale, grad_parts.q, grad_parts.k,
                 grad_parts.v);
    return {grad_first, grad_k, grad_v, {}, {}, {}};
  }

  struct Parts {
    at::Tensor q, k, v;
  };
  static Parts split(const at::Tensor& q_or_fused, const at::Tensor& k, const at::Tensor& v, int64_t num_kv_heads) {
    if (num_kv_heads == 0) return {with_dense_rows(q_or_fused), with_dense_rows(k), with_dense_rows(v)};
    const at::Tensor fused = with_dense_rows(q_or_fused);
    const int64_t num_heads = fused.size(1) - 2 * num_kv_heads;
    return {fused.narrow(1, 0, num_heads), fused.narrow(1, num_heads, num_kv_heads),
            fused.narrow(1, num_heads + num_kv_heads, num_kv_heads)};
  }
  static std::vector<int64_t> flatten(const Segments& segments) {
    std::vector<int64_t> rows;
    for (const AttentionSegment& s : segments) rows.insert(rows.end(), {s.begin, s.end, s.prefix_begin, s.prefix_end});
    return rows;
  }
  static Segments unflatten(const std::vector<int64_t>& rows) {
    Segments segments;
    for (size_t i = 0; i + 3 < rows.size(); i += 4)
      segments.push_back({rows[i], rows[i + 1], rows[i + 2], rows[i + 3]});
    return segments;
  }
};

at::Tensor attend(const at::Tensor& q_or_fused, const at::Tensor& k, const at::Tensor& v, int64_t num_kv_heads,
                  const Segments& segments, double scale) {
  const PackedAttention::Parts parts = PackedAttention::split(q_or_fused, k, v, num_kv_heads);
  check_inputs(parts.q, parts.k, parts.v, segments);
  if (device::takes(parts.q)) return device::packed_attention(parts.q, parts.k, parts.v, segments, scale);
  if (!use_kernels(parts.q)) return reference::packed_attention(parts.q, parts.k, parts.v, segments, scale);
  const bool differentiate =
      at::GradMode::is_enabled() &&
      (q_or_fused.requires_grad() || (k.defined() && k.requires_grad()) || (v.defined() && v.requires_grad()));
  if (differentiate)
    return PackedAttention::apply(q_or_fused, std::optional<at::Tensor>(k), std::optional<at::Tensor>(v), num_kv_heads,
                                  PackedAttention::flatten(segments), scale);
  const at::Tensor out = new_output(parts.q, segments);
  forward_cpu(parts.q, parts.k, parts.v, segments, scale, out, {});
  return out;
}

}  // namespace

at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale) {
  return attend(q, k, v, 0, segments, scale);
}

at::Tensor packed_attention_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads,
                                const std::vector<AttentionSegment>& segments, double scale) {
  TEMPER_CHECK(qkv.dim() == 3 && num_kv_heads > 0 && qkv.size(1) == num_heads + 2 * num_kv_heads,
               "qkv {} is not [T, {} + 2 * {}, D]", qkv.sizes(), num_heads, num_kv_heads);
  return attend(qkv, {}, {}, num_kv_heads, segments, scale);
}

}  // namespace temper
