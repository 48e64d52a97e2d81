// Matrix products with weights packed once per policy version. CPU: oneDNN's small-matrix kernels (brgemm, through
// LibTorch; of few rows a kernel of our own with the same bits, few_rows_product.h) over fixed tiles, one thread a
// tile, the inner dimension in fixed pieces: so a row of the result depends on that row of x and on the weights alone,
// never on what shares the batch nor on the number of threads. bf16 operands accumulate in f32 and may come out as f32.
// Int8 weights (generation only) are widened to the compute dtype a tile at a time, just before they are multiplied.
// Other devices: LibTorch's products, bf16 operands summed in f32 there too. Thread-safe for concurrent multiply();
// pack() must not run beside it.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace temper {

// Whether this CPU multiplies bf16 in hardware (AVX512-BF16 or AMX).
bool cpu_has_bf16();

// How a packed matrix keeps its weights: in the compute dtype, or as integers in [-127, 127] with one f32 scale an
// output (weight ≈ scale · integer, scale = largest magnitude / 127, rounded to nearest): half of bf16's bytes. x stays
// in the compute dtype, in which the integers are exact.
enum class WeightFormat : uint8_t { kCompute, kInt8 };

class PackedMatrix {
 public:
  PackedMatrix() = default;

  // Packs weight [N, K] (f32, rounded to `compute`: kFloat or kBFloat16) for x · weightᵀ. Keeps the buffer between
  // calls.
  void pack(const at::Tensor& weight, at::ScalarType compute, WeightFormat format = WeightFormat::kCompute);
  // Packs weight [K, N] for x · weight: a linear layer's backward product.
  void pack_transposed(const at::Tensor& weight, at::ScalarType compute);
  // The transposed matrix in the same memory. REQUIRES: not on the CPU, not int8.
  PackedMatrix transposed() const;

  bool defined() const { return packed_.defined(); }
  int64_t num_outputs() const { return num_outputs_; }
  int64_t num_inputs() const { return num_inputs_; }

  // x [T, K] in the compute dtype → [T, N]; bias [N] f32 or undefined.
  at::Tensor multiply(const at::Tensor& x, at::ScalarType out_dtype, const at::Tensor& bias = {}) const;
  // out [T, N] f32 += x · weightᵀ
  void multiply_add(const at::Tensor& x, at::Tensor& out) const;
  // Columns [begin, end) of the product alone, f32; begin is a multiple of kTileColumns.
  void multiply_columns(const at::Tensor& x, int64_t begin, int64_t end, at::Tensor& out) const;

  // out [T, N] f32 += x · (rows [begin, begin + x.size(1)) of the packed transposed matrix): part of the inner
  // dimension.
  void multiply_add_inputs(const at::Tensor& x, int64_t begin, at::Tensor& out) const;

  static constexpr int64_t kTileColumns = 64;
  static constexpr int64_t kTileRows = 64;

 private:
  struct Part {                       // of the packed matrix
    int64_t first_tile, last_tile;    // columns of the result
    int64_t first_input, num_inputs;  // rows of the inner dimension
  };
  Part whole() const { return {0, packed_.size(0), 0, padded_inputs_}; }
  void run(const at::Tensor& x, const Part& part, at::Tensor& out, const at::Tensor& bias, bool add) const;
  void pack_tiles_of(const at::Tensor& weight);
  at::Tensor on_device(const at::Tensor& x, int64_t begin, int64_t end, at::ScalarType out_dtype) const;

  // CPU: [tiles, K, 64] for f32, or [tiles, K/2, 64, 2] for bf16 (pairs of k side by side); else [N, K].
  at::Tensor packed_;
  at::Tensor scales_;  // [N] f32; undefined unless int8
  at::ScalarType compute_ = at::kFloat;
  int64_t num_outputs_ = 0;
  int64_t num_inputs_ = 0;
  int64_t padded_inputs_ = 0;  // K rounded up to even in bf16
};

// grad [N, K] f32 += dyᵀ · x for dy [T, N], x [T, K] in one dtype (f32 or bf16): a linear layer's weight gradient.
void accumulate_outer_product(const at::Tensor& dy, const at::Tensor& x, at::Tensor& grad);

}  // namespace temper
