// What attention.cpp and attention_paged.cpp hand to the vectorised kernels (attention_kernels.inc): one task, done by
// one thread. Plain pointers; nothing here owns memory.
#pragma once
#include <cstdint>

namespace temper {

constexpr int kPanelKeys = 16;  // keys of a panel: K transposed [D, 16], or rows [16, D]
constexpr int kTileKeys = 64;   // keys between two updates of the running softmax: position 0, 64, 128, ...
constexpr int kGroupRows = 48;  // query rows (tokens x heads) that a task keeps in the first-level cache
constexpr int64_t kMaxHeadDim = 256;

// Strides of a tensor [T, heads, D], in elements; the last dimension is contiguous.
struct RowStrides {
  int64_t token = 0, head = 0;
};

// Consecutive query tokens of one sequence and the query heads of one KV head.
struct QueryRun {
  const void* q = nullptr;  // first token, first head of the group
  void* out = nullptr;
  float* lse = nullptr;  // log of the sum of exp(scale * score), or null
  int64_t num_tokens = 0;
  int64_t first_position = 0;
  // Transposed panels from position 0. In bf16 the entries of one more tile follow, filled up with any readable panels:
  // what is fetched ahead at the end.
  const void* const* k_panels = nullptr;
  const void* const* v_panels = nullptr;  // row panels from position 0
};

// Runs done together; all begin with the same shared_tiles tiles, which are visible to every row.
struct ForwardTask {
  const QueryRun* runs = nullptr;
  int64_t num_runs = 0;
  int64_t shared_tiles = 0;
  int64_t group = 1;  // query heads of a KV head
  int64_t head_dim = 0;
  RowStrides q, out;
  int64_t lse_token_stride = 0;
  float scale = 1;
  bool query_bf16 = false, cache_bf16 = false;
};

// A segment and its keys as f32 panels from position 0.
struct BackwardSegment {
  int64_t begin = 0, end = 0, prefix_begin = 0, prefix_length = 0;
  const void* const* k_transposed = nullptr;
  const void* const* k_rows = nullptr;
  const void* const* v_transposed = nullptr;
};

// Segments of one family, one KV head. dk and dv are f32 [T, padded D] of this head, zeroed before the first task.
struct BackwardTask {
  const BackwardSegment* segments = nullptr;
  int64_t num_segments = 0;
  int64_t group = 1, head_dim = 0;
  const void *q = nullptr, *out = nullptr, *grad_out = nullptr;  // token 0, first head of the group
  const float* lse = nullptr;
  void* grad_q = nullptr;  // null: not this task's work
  float *grad_k = nullptr, *grad_v = nullptr;
  RowStrides q_strides, out_strides, grad_out_strides, grad_q_strides;
  int64_t lse_token_stride = 0;
  int64_t first_token = 0, last_token = INT64_MAX;  // own tokens of each segment, counted from its begin
  int64_t first_tile = 0, last_tile = INT64_MAX;    // key tiles
  float scale = 1;
  bool bf16 = false;
};

// Sixteen rows of k or v (row_of[i] < 0: zeros) as f32: transposed [D, 16], as rows [16, D], or both (null: not
// wanted).
struct PackTask {
  const void* rows = nullptr;  // token 0 of the head
  int64_t token_stride = 0;
  const int32_t* row_of = nullptr;
  int64_t head_dim = 0;
  bool bf16 = false;
  float* transposed = nullptr;
  float* as_rows = nullptr;
};

struct AttentionKernels {
  void (*forward)(const ForwardTask&);
  void (*backward)(const BackwardTask&);
  void (*pack)(const PackTask&);
};

const AttentionKernels& attention_kernels();

inline int64_t padded_head_dim(int64_t head_dim) { return (head_dim + 15) / 16 * 16; }
inline int64_t tokens_of_a_task(int64_t group) { return group >= kGroupRows ? 1 : kGroupRows / group; }

}  // namespace temper
