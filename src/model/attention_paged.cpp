// The engine's side of attention: the block cache, writing it, and attending to it.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>

#include "core/error.h"
#include "model/attention.h"
#include "model/attention_device.h"
#include "model/attention_kernels.h"
#include "model/cpu_dispatch.h"
#include "model/large_pages.h"

namespace temper {

namespace {

template <class TFrom, class TTo>
void store_tokens(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, const KvCache& cache) {
  const int64_t num_kv_heads = cache.num_kv_heads(), head_dim = cache.head_dim(), block_size = cache.block_size();
  const int64_t panel_size = head_dim * kPanelKeys, panels_of_block = block_size / kPanelKeys;
  const int64_t* slot = slots.const_data_ptr<int64_t>();
  const int64_t num_slots = cache.num_blocks() * block_size;
  for (int64_t t = 0; t < slots.size(0); ++t)
    TEMPER_CHECK(slot[t] >= 0 && slot[t] < num_slots, "slot {} of token {} lies outside the cache's {}", slot[t], t,
                 num_slots);
  const TFrom* k_from = k.const_data_ptr<TFrom>();
  const TFrom* v_from = v.const_data_ptr<TFrom>();
  TTo* k_to = cache.k.data_ptr<TTo>();
  TTo* v_to = cache.v.data_ptr<TTo>();
  at::parallel_for(0, slots.size(0), 32, [&](int64_t begin, int64_t end) {
    for (int64_t t = begin; t < end; ++t)
      for (int64_t h = 0; h < num_kv_heads; ++h) {
        const int64_t block = slot[t] / block_size, offset = slot[t] % block_size;
        const int64_t panel = (block * num_kv_heads + h) * panels_of_block + offset / kPanelKeys;
        const int64_t lane = offset % kPanelKeys;
        const TFrom* k_row = k_from + t * k.stride(0) + h * k.stride(1);
        const TFrom* v_row = v_from + t * v.stride(0) + h * v.stride(1);
        TTo* k_lane = k_to + panel * panel_size + lane;
        TTo* v_lane = v_to + panel * panel_size + lane * head_dim;
        if constexpr (std::is_same_v<TFrom, TTo>) {
          for (int64_t d = 0; d < head_dim; ++d) k_lane[d * kPanelKeys] = k_row[d];
          std::copy(v_row, v_row + head_dim, v_lane);
        } else {
          for (int64_t d = 0; d < head_dim; ++d)
            k_lane[d * kPanelKeys] = static_cast<TTo>(static_cast<float>(k_row[d]));
          for (int64_t d = 0; d < head_dim; ++d) v_lane[d] = static_cast<TTo>(static_cast<float>(v_row[d]));
        }
      }
  });
}

// Query rows that one task handles: several sequences with a common beginning, or a block of one sequence's tokens.
struct PagedTask {
  struct Run {
    int64_t sequence, token, num_tokens;
  };
  std::vector<Run> runs;
  int64_t shared_tiles = 0;
  int64_t cost = 0;
};

// Whole tiles at the start of both contexts that lie in the same blocks and before every query.
int64_t common_tiles(const PagedSequence& a, const PagedSequence& b, int64_t block_size) {
  const int64_t limit = std::min(a.context_length - a.num_new, b.context_length - b.num_new) + 1;
  const int64_t max_blocks = (limit + block_size - 1) / block_size;
  int64_t same = 0;
  while (same < max_blocks && a.blocks[same] == b.blocks[same]) ++same;
  return std::min(same * block_size, limit) / kTileKeys;
}

std::vector<PagedTask> plan_tasks(const std::vector<PagedSequence>& sequences, int64_t block_size, int64_t group) {
  const int64_t block_tokens = tokens_of_a_task(group);
  std::vector<PagedTask> tasks;
  int64_t open_rows = 0;  // tokens in the last task while it may grow; 0: it may not
  for (int64_t s = 0; s < static_cast<int64_t>(sequences.size()); ++s) {
    const PagedSequence& sequence = sequences[s];
    const int64_t old_length = sequence.context_length - sequence.num_new;
    if (open_rows > 0 && open_rows + sequence.num_new <= block_tokens) {
      PagedTask& task = tasks.back();
      int64_t shared = common_tiles(sequences[task.runs.back().sequence], sequence, block_size);
      if (task.runs.size() > 1) shared = std::min(shared, task.shared_tiles);
      if (shared > 0 && (task.runs.size() == 1 || shared == task.shared_tiles)) {
        task.shared_tiles = shared;
        task.runs.push_back({s, 0, sequence.num_new});
        task.cost += sequence.num_new * sequence.context_length;
        open_rows += sequence.num_new;
        continue;
      }
    }
    for (int64_t token = 0; token < sequence.num_new; token += block_tokens) {
      const int64_t num_tokens = std::min(block_tokens, sequence.num_new - token);
      tasks.push_back({{{s, token, num_tokens}}, 0, num_tokens * (old_length + token + num_tokens)});
    }
    open_rows = sequence.num_new <= block_tokens ? sequence.num_new : 0;
  }
  std::stable_sort(tasks.begin(), tasks.end(), [](const auto& a, const auto& b) { return a.cost > b.cost; });
  return tasks;
}

// Panel pointers of several runs. A run's list of keys is filled up to whole tiles and continued by the first tile of
// the next run: what the kernel fetches ahead.
class PanelLists {
 public:
  void clear() {
    pointers_.clear();
    starts_.clear();
  }
  template <class Offset>
  void add(int64_t num_panels, const Offset& offset, const char* k_base, const char* v_base) {
    const int64_t whole = (num_panels + kPanels - 1) / kPanels * kPanels;
    starts_.push_back({static_cast<int64_t>(pointers_.size()), whole + kPanels, num_panels});
    for (int64_t p = 0; p < num_panels; ++p) pointers_.push_back(k_base + offset(p));
    pointers_.resize(pointers_.size() + whole + kPanels - num_panels, pointers_.back());
    for (int64_t p = 0; p < num_panels; ++p) pointers_.push_back(v_base + offset(p));
  }
  void finish() {
    for (size_t i = 0; i + 1 < starts_.size(); ++i) {
      const Start &from = starts_[i], &next = starts_[i + 1];
      for (int64_t p = 0; p < std::min(kPanels, next.num_panels); ++p)
        pointers_[from.first + from.num_keys - kPanels + p] = pointers_[next.first + p];
    }
  }
  const void* const* k(int64_t i) const { return pointers_.data() + starts_[i].first; }
  const void* const* v(int64_t i) const { return k(i) + starts_[i].num_keys; }

 private:
  static constexpr int64_t kPanels = kTileKeys / kPanelKeys;
  struct Start {
    int64_t first, num_keys, num_panels;  // num_keys: entries of the list of keys
  };
  std::vector<const void*> pointers_;
  std::vector<Start> starts_;
};

}  // namespace

KvCache make_kv_cache(int64_t num_blocks, int64_t num_kv_heads, int64_t block_size, int64_t head_dim,
                      const at::TensorOptions& options) {
  if (block_size <= 0 || block_size % kPanelKeys != 0)
    throw ConfigError("[rollout] block_size = {}: the cache needs a positive multiple of {}. Set 16, 32 or 64.",
                      block_size, kPanelKeys);
  const int64_t panels = block_size / kPanelKeys;
  if (!options.device().is_cpu()) {
    const auto rows = [&] { return at::empty({num_blocks, panels, kPanelKeys, num_kv_heads, head_dim}, options); };
    return {rows().permute({0, 3, 1, 4, 2}), rows().permute({0, 3, 1, 2, 4})};
  }
  // Kernels read whole vectors: the last row of v may be read up to 15 elements past its end.
  const auto make = [&](at::IntArrayRef shape) {
    const int64_t count = num_blocks * num_kv_heads * block_size * head_dim;
    const at::Tensor storage = at::empty({count + kPanelKeys}, options);
    advise_large_pages(storage);
    return storage.narrow(0, 0, count).view(shape);
  };
  return {make({num_blocks, num_kv_heads, panels, head_dim, kPanelKeys}),
          make({num_blocks, num_kv_heads, panels, kPanelKeys, head_dim})};
}

at::Tensor KvCache::k_rows() const { return k.permute({0, 2, 4, 1, 3}).view({-1, num_kv_heads(), head_dim()}); }
at::Tensor KvCache::v_rows() const { return v.permute({0, 2, 3, 1, 4}).view({-1, num_kv_heads(), head_dim()}); }

void store_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, KvCache& cache) {
  TEMPER_CHECK(
      k.dim() == 3 && k.sizes() == v.sizes() && k.size(0) == slots.size(0) && k.size(1) == cache.num_kv_heads() &&
          k.size(2) == cache.head_dim() && k.scalar_type() == v.scalar_type(),
      "k {} and v {} do not fit {} slots and a cache of {}", k.sizes(), v.sizes(), slots.size(0), cache.k.sizes());
  if (!k.is_cpu()) {
    const at::Tensor rows = slots.to(k.device());
    cache.k_rows().index_copy_(0, rows, k.to(cache.k.scalar_type()));
    cache.v_rows().index_copy_(0, rows, v.to(cache.v.scalar_type()));
    return;
  }
  if (!is_kernel_dtype(k.scalar_type()) || !is_kernel_dtype(cache.k.scalar_type())) {
    reference::store_kv(k, v, slots, cache);
    return;
  }
  const at::Tensor keys = k.stride(2) == 1 ? k : k.contiguous(), values = v.stride(2) == 1 ? v : v.contiguous();
  const at::Tensor slot = slots.to(at::kLong).contiguous();
  if (k.scalar_type() == at::kFloat) {
    cache.k.scalar_type() == at::kFloat ? store_tokens<float, float>(keys, values, slot, cache)
                                        : store_tokens<float, at::BFloat16>(keys, values, slot, cache);
  } else {
    cache.k.scalar_type() == at::kFloat ? store_tokens<at::BFloat16, float>(keys, values, slot, cache)
                                        : store_tokens<at::BFloat16, at::BFloat16>(keys, values, slot, cache);
  }
}

void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out) {
  const int64_t num_kv_heads = cache.num_kv_heads(), head_dim = cache.head_dim(), block_size = cache.block_size();
  TEMPER_CHECK(q.dim() == 3 && q.size(2) == head_dim && q.size(1) % num_kv_heads == 0 && out.sizes() == q.sizes() &&
                   out.scalar_type() == q.scalar_type(),
               "q {} and out {} do not fit a cache of {}", q.sizes(), out.sizes(), cache.k.sizes());
  for (const PagedSequence& s : sequences)
    TEMPER_CHECK(
        0 <= s.num_new && s.num_new <= s.context_length && 0 <= s.row_begin && s.row_begin + s.num_new <= q.size(0),
        "a sequence with {} new tokens of {} at row {} does not fit {} rows", s.num_new, s.context_length, s.row_begin,
        q.size(0));
  if (device::takes(q)) {
    device::paged_attention(q, cache, sequences, scale, out);
    return;
  }
  if (!q.is_cpu() || !is_kernel_dtype(q.scalar_type()) || !is_kernel_dtype(cache.k.scalar_type()) ||
      head_dim > kMaxHeadDim) {
    reference::paged_attention(q, cache, sequences, scale, out);
    return;
  }
  TEMPER_CHECK(out.stride(2) == 1 && static_cast<int64_t>(cache.v.storage().nbytes() / cache.v.element_size()) >=
                                         cache.v.storage_offset() + cache.v.numel() + kPanelKeys,
               "out must have a dense last dimension and the cache must come from make_kv_cache");
  const at::Tensor queries = q.stride(2) == 1 ? q : q.contiguous();
  const int64_t group = q.size(1) / num_kv_heads, panels_of_block = block_size / kPanelKeys;
  const int64_t panel_bytes = kPanelKeys * head_dim * cache.k.element_size();
  const char* k_base = static_cast<const char*>(cache.k.const_data_ptr());
  const char* v_base = static_cast<const char*>(cache.v.const_data_ptr());
  const std::vector<PagedTask> tasks = plan_tasks(sequences, block_size, group);
  const AttentionKernels& kernels = attention_kernels();

  // All KV heads in one task, so that the end of one fetches the start of the next, unless threads would be idle.
  const bool by_head = static_cast<int64_t>(tasks.size()) < 4 * at::get_num_threads();
  const int64_t heads_of_task = by_head ? 1 : num_kv_heads, tasks_of_paged = num_kv_heads / heads_of_task;
  parallel_tasks(static_cast<int64_t>(tasks.size()) * tasks_of_paged, [&](int64_t i) {
    const PagedTask& paged = tasks[i / tasks_of_paged];
    const int64_t first_head = i % tasks_of_paged * heads_of_task;
    const int64_t num_runs = static_cast<int64_t>(paged.runs.size());
    thread_local PanelLists lists;
    lists.clear();
    for (int64_t h = first_head; h < first_head + heads_of_task; ++h)
      for (const PagedTask::Run& run : paged.runs) {
        const PagedSequence& sequence = sequences[run.sequence];
        const int64_t length = sequence.context_length - sequence.num_new + run.token + run.num_tokens;
        lists.add((length + kPanelKeys - 1) / kPanelKeys,
                  [&](int64_t p) {
                    const int64_t block = sequence.blocks[p / panels_of_block];
                    return ((block * num_kv_heads + h) * panels_of_block + p % panels_of_block) * panel_bytes;
                  },
                  k_base, v_base);
      }
    lists.finish();
    thread_local std::vector<QueryRun> runs;
    for (int64_t h = 0; h < heads_of_task; ++h) {
      runs.assign(num_runs, {});
      for (int64_t r = 0; r < num_runs; ++r) {
        const PagedTask::Run& from = paged.runs[r];
        const PagedSequence& sequence = sequences[from.sequence];
        const int64_t row = sequence.row_begin + from.token, head = (first_head + h) * group;
        runs[r].q = static_cast<const char*>(queries.const_data_ptr()) +
                    (row * queries.stride(0) + head * queries.stride(1)) * queries.element_size();
        runs[r].out = static_cast<char*>(out.mutable_data_ptr()) +
                      (row * out.stride(0) + head * out.stride(1)) * out.element_size();
        runs[r].num_tokens = from.num_tokens;
        runs[r].first_position = sequence.context_length - sequence.num_new + from.token;
        runs[r].k_panels = lists.k(h * num_runs + r);
        runs[r].v_panels = lists.v(h * num_runs + r);
      }
      ForwardTask task;
      task.runs = runs.data();
      task.num_runs = num_runs;
      task.shared_tiles = paged.shared_tiles;
      task.group = group;
      task.head_dim = head_dim;
      task.q = {queries.stride(0), queries.stride(1)};
      task.out = {out.stride(0), out.stride(1)};
      task.scale = static_cast<float>(scale);
      task.query_bf16 = q.scalar_type() == at::kBFloat16;
      task.cache_bf16 = cache.k.scalar_type() == at::kBFloat16;
      kernels.forward(task);
    }
  });
}

}  // namespace temper
