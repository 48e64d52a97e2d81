// What elementwise.cpp hands to the vectorised kernels (elementwise_kernels.inc): rows [begin, end) of one operation,
// done by one thread. Plain pointers; nothing here owns memory. A pointer's element type is f32, or bf16 where its flag
// says so.
#pragma once
#include <cstdint>

namespace temper {

// Where row r of a tensor [outer, inner, N] starts, in elements.
struct RowLayout {
  int64_t inner = 1, outer_stride = 0, inner_stride = 0;
  int64_t offset(int64_t row) const { return row / inner * outer_stride + row % inner * inner_stride; }
};

struct RmsNormTask {
  const void* x = nullptr;
  RowLayout x_layout;
  const float* weight = nullptr;
  int64_t size = 0;
  float eps = 0;
  bool x_bf16 = false, out_bf16 = false;  // grad_x is of x's type, grad_out of out's
  void* out = nullptr;                    // rows one after the other, as grad_out and grad_x
  const void* grad_out = nullptr;
  void* grad_x = nullptr;
  float* grad_weight = nullptr;  // [N], the rows are added in order
  int64_t begin = 0, end = 0;
};

// Tokens [begin, end) of x [T, heads, D]: heads [0, num_q) take q_weight, the next num_k take k_weight (null: no norm)
// and all of these are rotated; the rest is copied. Backward: x is what was normed (null without norms).
struct RopeTask {
  const void* x = nullptr;
  int64_t x_token_stride = 0, x_head_stride = 0;
  int64_t num_heads = 0, num_q = 0, num_k = 0, head_dim = 0;
  const float *q_weight = nullptr, *k_weight = nullptr;
  float eps = 0;
  const float *cos = nullptr, *sin = nullptr;  // [positions, D / 2]
  const int64_t* positions = nullptr;
  bool bf16 = false;
  void* out = nullptr;  // contiguous, as grad_out and grad_x
  const void* grad_out = nullptr;
  void* grad_x = nullptr;
  float *grad_q_weight = nullptr, *grad_k_weight = nullptr;  // [D], the tokens are added in order
  int64_t begin = 0, end = 0;
};

struct SiluMulTask {
  const void* gate_up = nullptr;
  int64_t row_stride = 0, size = 0;  // size: I
  bool in_bf16 = false, out_bf16 = false;
  void* out = nullptr;  // rows of I one after the other, as grad_out; grad_gate_up rows of 2 I
  const void* grad_out = nullptr;
  void* grad_gate_up = nullptr;
  int64_t begin = 0, end = 0;
};

// A tile of a product leaves its f32 scratch [rows, scratch_stride]: (+ bias) as bf16.
struct NarrowTask {
  const float* scratch = nullptr;
  int64_t scratch_stride = 0, num_rows = 0, num_columns = 0;
  const float* bias = nullptr;  // [num_columns] or null
  void* out = nullptr;          // bf16
  int64_t out_stride = 0;
};

// Int8 weights as f32 or bf16 values, in which they are exact. Rows of both sides are `stride` elements apart.
struct WidenTask {
  const int8_t* from = nullptr;
  int64_t num_rows = 0, row_size = 0, stride = 0;  // row_size: a multiple of 32
  bool to_bf16 = false;
  void* to = nullptr;
};

struct ElementwiseKernels {
  void (*rms_norm)(const RmsNormTask&);
  void (*rms_norm_backward)(const RmsNormTask&);
  void (*rope)(const RopeTask&);
  void (*rope_backward)(const RopeTask&);
  void (*silu_mul)(const SiluMulTask&);
  void (*silu_mul_backward)(const SiluMulTask&);
  void (*narrow)(const NarrowTask&);
  void (*widen)(const WidenTask&);
};

const ElementwiseKernels& elementwise_kernels();

constexpr int64_t kMaxRopeDim = 512;

}  // namespace temper
