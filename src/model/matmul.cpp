#include "model/matmul.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <ATen/native/CPUBlas.h>
#include <cpuinfo.h>
#if defined(__x86_64__)
#include <emmintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <type_traits>
#include <vector>

#include "core/error.h"
#include "model/cpu_dispatch.h"
#include "model/elementwise_kernels.h"
#include "model/few_rows_product.h"
#include "model/large_pages.h"

namespace temper {
namespace {

namespace blas = at::native::cpublas;

constexpr int64_t kRows = PackedMatrix::kTileRows;
constexpr int64_t kColumns = PackedMatrix::kTileColumns;
constexpr int64_t kInnerChunk = 256;  // of a weight gradient's sum over tokens
constexpr int64_t kInnerStep = 64;    // its padding: bounds the number of compiled kernels
// Turns of each thread in a product: cores that share their time with others differ in speed. With few rows it is
// memory that limits, and long runs of weights come fastest.
constexpr int64_t kTurns = 6, kMemoryBoundRows = 8;

// f32 sums are cut into pieces of the inner dimension, each summed in registers and then added: the rounding error of a
// long sum falls with the square root of their number. bf16 operands are rounded far more coarsely than that.
template <class T>
constexpr int64_t kSumPiece = std::is_same_v<T, at::BFloat16> ? INT64_MAX : 64;

// Neighbours of the inner dimension that lie side by side.
template <class T>
constexpr int64_t kPairOf = std::is_same_v<T, at::BFloat16> ? 2 : 1;

// rows: a power of two.
template <class T>
void step_product(int64_t rows, int64_t inner, int64_t lda, int64_t ldb, int64_t ldc, bool add, const T* a, const T* b,
                  float* c, int64_t columns) {
  constexpr bool kPairs = std::is_same_v<T, at::BFloat16>;
  if constexpr (kPairs)
    if (rows <= kFewRows && has_few_rows_product())
      return few_rows_product(rows, {.x = a,
                                     .x_stride = lda,
                                     .weights = b,
                                     .num_inputs = inner,
                                     .num_columns = columns,
                                     .add = add,
                                     .out = c,
                                     .out_stride = ldc});
  for (int64_t k = 0; k < inner; k += std::min(kSumPiece<T>, inner - k))
    blas::brgemm(rows, columns, std::min(kSumPiece<T>, inner - k), lda, ldb, ldc, add || k > 0, a + k, b + k * ldb, c,
                 kPairs);
}

// Any number of rows: kernels are compiled per shape, so rows go in powers of two. ldb: 64.
template <class T>
void tile_product(int64_t rows, int64_t inner, int64_t lda, int64_t ldb, int64_t ldc, bool add, const T* a, const T* b,
                  float* c, int64_t columns = kColumns) {
  for (int64_t step = kRows; rows > 0; step /= 2) {
    while (rows >= step) {
      step_product(step, inner, lda, ldb, ldc, add, a, b, c, columns);
      a += step * lda;
      c += step * ldc;
      rows -= step;
    }
  }
}

template <class Function>
void for_each_dtype(at::ScalarType dtype, Function function) {
  if (dtype == at::kBFloat16)
    function(at::BFloat16{});
  else
    function(float{});
}

#if defined(__x86_64__)
// 4 rows of 4 pairs become their transpose; strides in bf16 values.
void transpose_pairs(const at::BFloat16* from, int64_t from_stride, at::BFloat16* to, int64_t to_stride) {
  const auto row = [&](int64_t i) { return _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride)); };
  const auto store = [&](int64_t i, __m128i column) {
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + i * to_stride), column);
  };
  const __m128i low_a = _mm_unpacklo_epi32(row(0), row(1)), low_b = _mm_unpacklo_epi32(row(2), row(3));
  const __m128i high_a = _mm_unpackhi_epi32(row(0), row(1)), high_b = _mm_unpackhi_epi32(row(2), row(3));
  store(0, _mm_unpacklo_epi64(low_a, low_b));
  store(1, _mm_unpackhi_epi64(low_a, low_b));
  store(2, _mm_unpacklo_epi64(high_a, high_b));
  store(3, _mm_unpackhi_epi64(high_a, high_b));
}

// The first inputs of 64 outputs whose weights lie row by row, in pairs [inputs / 2, 64, 2]. How many: all but the last
// few.
template <class TFrom>
int64_t pack_rows(const TFrom* from, int64_t inputs, int64_t stride, at::BFloat16* packed) {
  constexpr int64_t kBlock = 64, kStep = 8;
  at::BFloat16 narrowed[kColumns * kBlock];
  int64_t k = 0;
  for (int64_t count; (count = std::min(kBlock, (inputs - k) / kStep * kStep)) > 0; k += count) {
    const at::BFloat16* rows = narrowed;
    int64_t rows_stride = kBlock;
    if constexpr (std::is_same_v<TFrom, float>)
      elementwise_kernels().narrow({.scratch = from + k,
                                    .scratch_stride = stride,
                                    .num_rows = kColumns,
                                    .num_columns = count,
                                    .out = narrowed,
                                    .out_stride = kBlock});
    else
      rows = from + k, rows_stride = stride;
    for (int64_t n = 0; n < kColumns; n += 4)
      for (int64_t i = 0; i < count; i += kStep)
        transpose_pairs(rows + n * rows_stride + i, rows_stride, packed + (k + i) * kColumns + 2 * n, 2 * kColumns);
  }
  return k;
}

// The same where they lie column by column.
template <class TFrom>
int64_t pack_columns(const TFrom* from, int64_t inputs, int64_t stride, at::BFloat16* packed) {
  at::BFloat16 narrowed[2 * kColumns];
  int64_t k = 0;
  for (; k + 2 <= inputs; k += 2, packed += 2 * kColumns) {
    const at::BFloat16 *first = narrowed, *second = narrowed + kColumns;
    if constexpr (std::is_same_v<TFrom, float>)
      elementwise_kernels().narrow({.scratch = from + k * stride,
                                    .scratch_stride = stride,
                                    .num_rows = 2,
                                    .num_columns = kColumns,
                                    .out = narrowed,
                                    .out_stride = kColumns});
    else
      first = from + k * stride, second = first + stride;
    for (int64_t n = 0; n < kColumns; n += 8) {
      const __m128i a = _mm_loadu_si128(reinterpret_cast<const __m128i*>(first + n));
      const __m128i b = _mm_loadu_si128(reinterpret_cast<const __m128i*>(second + n));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + 2 * n), _mm_unpacklo_epi16(a, b));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(packed + 2 * n) + 1, _mm_unpackhi_epi16(a, b));
    }
  }
  return k;
}
#endif

// [N, K] → [tiles, K, 64] or, in pairs, [tiles, K/2, 64, 2]; rows and columns beyond the matrix are zero.
template <int64_t kPair, class TFrom, class T>
void pack_tiles(const TFrom* weight, int64_t outputs, int64_t inputs, int64_t stride_output, int64_t stride_input,
                int64_t padded_inputs, T* packed) {
  const int64_t tiles = (outputs + kColumns - 1) / kColumns;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      T* out = packed + tile * padded_inputs * kColumns;
      const TFrom* first = weight + tile * kColumns * stride_output;
      const int64_t columns = std::min(kColumns, outputs - tile * kColumns);
      int64_t k = 0;
#if defined(__x86_64__)
      if constexpr (std::is_same_v<T, at::BFloat16>) {
        if (columns == kColumns && stride_input == 1)
          k = pack_rows(first, inputs, stride_output, out);
        else if (columns == kColumns && stride_output == 1)
          k = pack_columns(first, inputs, stride_input, out);
      }
#endif
      // Column by column in runs of inputs that stay in cache.
      for (; k < padded_inputs; k += kPair) {
        const TFrom* from = first + k * stride_input;
        T* to = out + k * kColumns;
        for (int64_t n = 0; n < kColumns; ++n)
          for (int64_t p = 0; p < kPair; ++p)
            to[n * kPair + p] =
                n < columns && k + p < inputs ? static_cast<T>(from[n * stride_output + p * stride_input]) : T(0);
      }
    }
  });
}

// [N, K] of any floating dtype → integers [N, K] int8 and their scales [N] f32.
std::pair<at::Tensor, at::Tensor> quantize_rows(const at::Tensor& weight) {
  constexpr int64_t kBlockRows = 2048;  // bounds the copy in f32
  const at::Tensor integers = at::empty(weight.sizes(), weight.options().dtype(at::kChar));
  const at::Tensor scales = at::empty({weight.size(0)}, weight.options().dtype(at::kFloat));
  for (int64_t begin = 0; begin < weight.size(0); begin += kBlockRows) {
    const int64_t rows = std::min(kBlockRows, weight.size(0) - begin);
    const at::Tensor block = weight.narrow(0, begin, rows).to(at::kFloat);
    const at::Tensor largest = block.abs().amax(1);
    scales.narrow(0, begin, rows).copy_(largest / 127);
    const at::Tensor per_unit = at::where(largest > 0, 127 / largest, at::zeros({}, largest.options()));
    integers.narrow(0, begin, rows).copy_((block * per_unit.unsqueeze(1)).round_().clamp_(-127, 127));
  }
  return {integers, scales};
}

}  // namespace

bool cpu_has_bf16() {
  static const bool has = cpuinfo_initialize() && (cpuinfo_has_x86_avx512bf16() || cpuinfo_has_x86_amx_bf16());
  return has;
}

void PackedMatrix::pack(const at::Tensor& weight, at::ScalarType compute, WeightFormat format) {
  TEMPER_CHECK(weight.dim() == 2 && (weight.scalar_type() == at::kFloat || weight.scalar_type() == compute),
               "weight is {}-dimensional, of dtype {}", weight.dim(), at::toString(weight.scalar_type()));
  TEMPER_CHECK(compute == at::kFloat || compute == at::kBFloat16, "compute dtype {}", at::toString(compute));
  compute_ = compute;
  num_outputs_ = weight.size(0);
  num_inputs_ = weight.size(1);
  if (format == WeightFormat::kInt8) {
    const auto [integers, scales] = quantize_rows(weight);
    scales_ = scales;
    pack_tiles_of(integers);
  } else {
    scales_ = at::Tensor();
    pack_tiles_of(weight);
  }
}

// weight: int8, f32 or the compute dtype.
void PackedMatrix::pack_tiles_of(const at::Tensor& weight) {
  const at::ScalarType compute = compute_, stored = scales_.defined() ? at::kChar : compute;
  if (!weight.is_cpu()) {
    if (packed_.defined() && packed_.sizes() == weight.sizes() && packed_.scalar_type() == stored)
      packed_.copy_(weight);
    else
      packed_ = weight.to(stored, /*non_blocking=*/false, /*copy=*/true);
    return;
  }
  padded_inputs_ = compute == at::kBFloat16 ? (num_inputs_ + 1) / 2 * 2 : num_inputs_;
  const int64_t tiles = (num_outputs_ + kColumns - 1) / kColumns;
  if (!packed_.defined() || packed_.numel() != tiles * padded_inputs_ * kColumns || packed_.scalar_type() != stored)
    packed_ = empty_in_large_pages({tiles, padded_inputs_, kColumns}, stored);
  for_each_dtype(compute, [&](auto zero) {
    using T = decltype(zero);
    const auto pack_into = [&](const auto* data, auto* packed) {
      pack_tiles<kPairOf<T>>(data, num_outputs_, num_inputs_, weight.stride(0), weight.stride(1), padded_inputs_,
                             packed);
    };
    if (weight.scalar_type() == at::kChar)
      pack_into(weight.const_data_ptr<int8_t>(), packed_.mutable_data_ptr<int8_t>());
    else if (weight.scalar_type() == at::kFloat)
      pack_into(weight.const_data_ptr<float>(), packed_.mutable_data_ptr<T>());
    else
      pack_into(weight.const_data_ptr<T>(), packed_.mutable_data_ptr<T>());
  });
}

void PackedMatrix::pack_transposed(const at::Tensor& weight, at::ScalarType compute) { pack(weight.t(), compute); }

PackedMatrix PackedMatrix::transposed() const {
  TEMPER_CHECK(!packed_.is_cpu() && !scales_.defined(), "only whole matrices on a GPU have their transpose in place");
  PackedMatrix result = *this;
  result.packed_ = packed_.t();
  std::swap(result.num_outputs_, result.num_inputs_);
  return result;
}

namespace {

// a [M, K] · b [K, N], both of one dtype; bf16 is summed in f32 and rounded once, if at all.
at::Tensor device_product(const at::Tensor& a, const at::Tensor& b, at::ScalarType out_dtype) {
  if (a.scalar_type() == out_dtype) return at::mm(a, b);
  if (a.is_cuda() && out_dtype == at::kFloat) return at::mm(a, b, out_dtype);
  return at::mm(a.to(at::kFloat), b.to(at::kFloat)).to(out_dtype);
}

// out [M, N] f32 += a · b
void device_add_product(at::Tensor& out, const at::Tensor& a, const at::Tensor& b) {
  if (a.scalar_type() == at::kFloat)
    at::addmm_out(out, out, a, b);
  else if (a.is_cuda())
    at::addmm_out(out, out, a, b, at::kFloat);
  else
    out.add_(device_product(a, b, at::kFloat));
}

// Tasks of one product: tiles of 64 columns or, where that would leave threads idle, halves of them.
int64_t split_of(int64_t num_tiles) {
  const int64_t threads = at::get_num_threads();
  return threads > 1 && num_tiles % threads != 0 && num_tiles < 16 * threads ? 2 : 1;
}

// Int8 columns [shift, shift + width) of one tile, widened where tile_product finds them: room for the whole tile, one
// buffer a thread. Returns the tile's first element.
template <class T>
const T* widen_tile(const int8_t* from, int64_t num_inputs, int64_t shift, int64_t width) {
  static thread_local std::vector<T> room;
  if (room.size() < static_cast<size_t>(num_inputs * kColumns)) room.resize(static_cast<size_t>(num_inputs * kColumns));
  elementwise_kernels().widen({.from = from + shift * kPairOf<T>,
                               .num_rows = num_inputs / kPairOf<T>,
                               .row_size = width * kPairOf<T>,
                               .stride = kColumns * kPairOf<T>,
                               .to_bf16 = std::is_same_v<T, at::BFloat16>,
                               .to = room.data() + shift * kPairOf<T>});
  return room.data();
}

}  // namespace

void PackedMatrix::run(const at::Tensor& x, const Part& part, at::Tensor& out, const at::Tensor& bias, bool add) const {
  const int64_t rows = x.size(0);
  const int64_t row_tiles = (rows + kRows - 1) / kRows;
  const int64_t out_columns = out.size(1), out_stride = out.stride(0);
  const float* bias_data = bias.defined() ? bias.const_data_ptr<float>() : nullptr;
  const bool to_bf16 = out.scalar_type() == at::kBFloat16;
  void* out_data = out.mutable_data_ptr();
  const int64_t split = split_of((part.last_tile - part.first_tile) * row_tiles);
  const ElementwiseKernels& kernels = elementwise_kernels();
  for_each_dtype(compute_, [&](auto zero) {
    using T = decltype(zero);
    // What an f32 product is added to may be thousands of times larger (the residual stream's massive activations):
    // it is added once, after the pieces, and not to each of them.
    const bool add_last = add && std::is_same_v<T, float>;
    const T* x_data = x.const_data_ptr<T>();
    const int64_t x_stride = x.stride(0);
    const bool is_int8 = scales_.defined();
    const void* packed = packed_.const_data_ptr();
    const float* scales = is_int8 ? scales_.const_data_ptr<float>() : nullptr;
    const int64_t items = (part.last_tile - part.first_tile) * split * row_tiles;
    const int64_t turns = at::get_num_threads() * (rows > kMemoryBoundRows ? kTurns : 1);
    const int64_t run_length = std::max<int64_t>(1, (items + turns - 1) / turns);
    parallel_tasks((items + run_length - 1) / run_length, [&](int64_t turn) {
      const int64_t begin = turn * run_length, end = std::min(items, begin + run_length);
      alignas(64) float scratch[kRows * kColumns];
      const T* b = nullptr;     // of the tile
      int64_t piece_of_b = -1;  // serves all rows
      for (int64_t item = begin; item < end; ++item) {
        const int64_t piece = item / row_tiles, row = item % row_tiles * kRows;
        const int64_t tile = part.first_tile + piece / split, shift = piece % split * (kColumns / split);
        // Halves of one tile that come one after the other are one tile: its memory is read as it lies.
        const bool rejoined = split == 2 && row_tiles == 1 && shift == 0 && item + 1 < end;
        const int64_t width = rejoined ? kColumns : kColumns / split;
        if (rejoined) ++item;
        const int64_t tile_rows = std::min(kRows, rows - row);
        const int64_t column = (tile - part.first_tile) * kColumns + shift;  // in out
        const int64_t columns = std::min(width, out_columns - column);
        if (columns <= 0) continue;
        const T* a = x_data + row * x_stride;
        const int64_t first = (tile * padded_inputs_ + part.first_input) * kColumns;
        if (piece != piece_of_b)
          b = is_int8 ? widen_tile<T>(static_cast<const int8_t*>(packed) + first, part.num_inputs, shift, width)
                      : static_cast<const T*>(packed) + first;
        piece_of_b = piece;
        const T* b_columns = b + shift * kPairOf<T>;
        // By the whole tile: what a sum is added to is added in another place on the other way.
        const bool full = out_columns - (tile - part.first_tile) * kColumns >= kColumns;
        if (!to_bf16 && full && bias_data == nullptr && !add_last && !is_int8) {
          tile_product<T>(tile_rows, part.num_inputs, x_stride, kColumns, out_stride, add, a, b_columns,
                          static_cast<float*>(out_data) + row * out_stride + column, width);
          continue;
        }
        tile_product<T>(tile_rows, part.num_inputs, x_stride, kColumns, width, false, a, b_columns, scratch, width);
        if (is_int8)
          for (int64_t r = 0; r < tile_rows; ++r)
            for (int64_t n = 0; n < columns; ++n) scratch[r * width + n] *= scales[tile * kColumns + shift + n];
        const float* tile_bias = bias_data == nullptr ? nullptr : bias_data + tile * kColumns + shift;
        if (to_bf16) {
          kernels.narrow({.scratch = scratch,
                          .scratch_stride = width,
                          .num_rows = tile_rows,
                          .num_columns = columns,
                          .bias = tile_bias,
                          .out = static_cast<at::BFloat16*>(out_data) + row * out_stride + column,
                          .out_stride = out_stride});
          continue;
        }
        for (int64_t r = 0; r < tile_rows; ++r) {
          const float* from = scratch + r * width;
          float* to = static_cast<float*>(out_data) + (row + r) * out_stride + column;
          for (int64_t n = 0; n < columns; ++n) {
            const float value = tile_bias == nullptr ? from[n] : from[n] + tile_bias[n];
            to[n] = add ? to[n] + value : value;
          }
        }
      }
      blas::brgemm_release(compute_ == at::kBFloat16);
    });
  });
}

namespace {

// Rows contiguous, in the compute dtype, and (bf16 with odd K) padded by a zero column.
at::Tensor as_operand(const at::Tensor& x, at::ScalarType compute, int64_t inputs, int64_t padded_inputs) {
  TEMPER_CHECK(x.dim() == 2 && x.size(1) == inputs, "x has {} columns, the weight {}", x.dim() == 2 ? x.size(1) : -1,
               inputs);
  at::Tensor operand = x.scalar_type() == compute ? x : x.to(compute);
  if (padded_inputs != inputs) operand = at::constant_pad_nd(operand, {0, padded_inputs - inputs});
  return operand.stride(1) == 1 ? operand : operand.contiguous();
}

}  // namespace

// Columns [begin, end) of the product.
at::Tensor PackedMatrix::on_device(const at::Tensor& x, int64_t begin, int64_t end, at::ScalarType out_dtype) const {
  const at::Tensor weight = packed_.narrow(0, begin, end - begin).to(compute_).t();
  if (!scales_.defined()) return device_product(x.to(compute_), weight, out_dtype);
  return (device_product(x.to(compute_), weight, at::kFloat) * scales_.narrow(0, begin, end - begin)).to(out_dtype);
}

at::Tensor PackedMatrix::multiply(const at::Tensor& x, at::ScalarType out_dtype, const at::Tensor& bias) const {
  if (!x.is_cpu()) {
    if (!bias.defined()) return on_device(x, 0, num_outputs_, out_dtype);
    return on_device(x, 0, num_outputs_, at::kFloat).add_(bias).to(out_dtype);
  }
  at::Tensor out = at::empty({x.size(0), num_outputs_}, x.options().dtype(out_dtype));
  run(as_operand(x, compute_, num_inputs_, padded_inputs_), whole(), out, bias, false);
  return out;
}

void PackedMatrix::multiply_add(const at::Tensor& x, at::Tensor& out) const {
  TEMPER_CHECK(out.scalar_type() == at::kFloat && out.stride(1) == 1, "the sum must be f32 with contiguous rows");
  if (!x.is_cpu()) {
    if (scales_.defined())
      out.add_(on_device(x, 0, num_outputs_, at::kFloat));
    else
      device_add_product(out, x.to(compute_), packed_.t());
    return;
  }
  run(as_operand(x, compute_, num_inputs_, padded_inputs_), whole(), out, {}, true);
}

void PackedMatrix::multiply_columns(const at::Tensor& x, int64_t begin, int64_t end, at::Tensor& out) const {
  TEMPER_CHECK(begin % kColumns == 0 && end <= num_outputs_ && out.size(1) == end - begin, "columns {} to {}", begin,
               end);
  if (!x.is_cpu()) {
    out.copy_(on_device(x, begin, end, out.scalar_type()));
    return;
  }
  run(as_operand(x, compute_, num_inputs_, padded_inputs_),
      {begin / kColumns, (end + kColumns - 1) / kColumns, 0, padded_inputs_}, out, {}, false);
}

void PackedMatrix::multiply_add_inputs(const at::Tensor& x, int64_t begin, at::Tensor& out) const {
  if (!x.is_cpu()) {
    device_add_product(out, x.to(compute_), packed_.narrow(1, begin, x.size(1)).t());
    return;
  }
  TEMPER_CHECK(begin % 2 == 0 && begin + x.size(1) <= num_inputs_, "inputs {} to {}", begin, begin + x.size(1));
  const int64_t padded = std::min(begin + (x.size(1) + 1) / 2 * 2, padded_inputs_) - begin;
  run(as_operand(x, compute_, x.size(1), padded), {0, packed_.size(0), begin, padded}, out, {}, true);
}

namespace {

#if defined(__x86_64__)
// 8 rows of 8 numbers of 16 bits become their transpose.
void transpose_8x8(const uint16_t* from, int64_t from_stride, uint16_t* to, int64_t to_stride) {
  __m128i rows[8], pairs[8], quads[8];
  for (int64_t i = 0; i < 8; ++i) rows[i] = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from + i * from_stride));
  for (int64_t i = 0; i < 4; ++i) {
    pairs[2 * i] = _mm_unpacklo_epi16(rows[2 * i], rows[2 * i + 1]);
    pairs[2 * i + 1] = _mm_unpackhi_epi16(rows[2 * i], rows[2 * i + 1]);
  }
  for (int64_t half = 0; half < 2; ++half)  // of the columns
    for (int64_t i = 0; i < 2; ++i) {
      quads[4 * half + i] = _mm_unpacklo_epi32(pairs[4 * i + half], pairs[4 * i + half + 2]);
      quads[4 * half + i + 2] = _mm_unpackhi_epi32(pairs[4 * i + half], pairs[4 * i + half + 2]);
    }
  for (int64_t i = 0; i < 4; ++i) {
    const __m128i low = quads[2 * i], high = quads[2 * i + 1];
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + 2 * i * to_stride), _mm_unpacklo_epi64(low, high));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to + (2 * i + 1) * to_stride), _mm_unpackhi_epi64(low, high));
  }
}
#endif

// dyᵀ as rows [N, T'] and x as inner-dimension pairs [T'/pair, tiles·64, pair], T' = T padded with zeros.
template <class T>
void transpose_rows(const T* from, int64_t stride, int64_t tokens, int64_t width, int64_t padded_tokens, T* to) {
  constexpr int64_t kBlock = 32;
  at::parallel_for(0, (width + kBlock - 1) / kBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      const int64_t first = block * kBlock, last = std::min(width, first + kBlock);
      for (int64_t t0 = 0; t0 < padded_tokens; t0 += kBlock) {
        const int64_t t1 = std::min(t0 + kBlock, tokens);
#if defined(__x86_64__)
        if constexpr (sizeof(T) == sizeof(uint16_t)) {
          if (t1 == t0 + kBlock && last == first + kBlock) {
            for (int64_t n = first; n < last; n += 8)
              for (int64_t t = t0; t < t1; t += 8)
                transpose_8x8(reinterpret_cast<const uint16_t*>(from) + t * stride + n, stride,
                              reinterpret_cast<uint16_t*>(to) + n * padded_tokens + t, padded_tokens);
            continue;
          }
        }
#endif
        for (int64_t n = first; n < last; ++n) {
          T* row = to + n * padded_tokens;
          int64_t t = t0;
          for (; t < t1; ++t) row[t] = from[t * stride + n];
          for (; t < std::min(t0 + kBlock, padded_tokens); ++t) row[t] = T(0);
        }
      }
    }
  });
}

template <class T>
void pack_inner(const T* from, int64_t stride, int64_t tokens, int64_t width, int64_t padded_tokens, T* to) {
  constexpr int64_t kPair = std::is_same_v<T, at::BFloat16> ? 2 : 1;
  const int64_t tiles = (width + kColumns - 1) / kColumns;
  at::parallel_for(0, tiles, 1, [&](int64_t begin, int64_t end) {
    for (int64_t tile = begin; tile < end; ++tile) {
      const int64_t columns = std::min(kColumns, width - tile * kColumns);
      T* out = to + tile * padded_tokens * kColumns;
      for (int64_t t = 0; t < padded_tokens; t += kPair, out += kColumns * kPair) {
        const T* row = from + t * stride + tile * kColumns;
        if (t + kPair <= tokens && columns == kColumns) {
          for (int64_t n = 0; n < kColumns; ++n)
            for (int64_t p = 0; p < kPair; ++p) out[n * kPair + p] = row[p * stride + n];
        } else {
          for (int64_t n = 0; n < kColumns; ++n)
            for (int64_t p = 0; p < kPair; ++p)
              out[n * kPair + p] = n < columns && t + p < tokens ? row[p * stride + n] : T(0);
        }
      }
    }
  });
}

}  // namespace

void accumulate_outer_product(const at::Tensor& dy_given, const at::Tensor& x_given, at::Tensor& grad) {
  TEMPER_CHECK(grad.scalar_type() == at::kFloat && grad.stride(1) == 1,
               "the gradient must be f32 with contiguous rows");
  TEMPER_CHECK(dy_given.scalar_type() == x_given.scalar_type() && dy_given.size(0) == x_given.size(0) &&
                   grad.size(0) == dy_given.size(1) && grad.size(1) == x_given.size(1),
               "dy has {} rows, x {}", dy_given.size(0), x_given.size(0));
  if (!grad.is_cpu()) {
    device_add_product(grad, dy_given.t(), x_given);
    return;
  }
  const at::Tensor dy = dy_given.stride(1) == 1 ? dy_given : dy_given.contiguous();
  const at::Tensor x = x_given.stride(1) == 1 ? x_given : x_given.contiguous();
  const int64_t tokens = x.size(0), outputs = dy.size(1), inputs = x.size(1);
  const int64_t padded = (tokens + kInnerStep - 1) / kInnerStep * kInnerStep;
  const int64_t tiles = (inputs + kColumns - 1) / kColumns;
  for_each_dtype(x.scalar_type(), [&](auto zero) {
    using T = decltype(zero);
    at::Tensor rows = at::empty({outputs, padded}, x.options());
    at::Tensor pairs = at::empty({tiles, padded, kColumns}, x.options());
    transpose_rows<T>(dy.const_data_ptr<T>(), dy.stride(0), tokens, outputs, padded, rows.mutable_data_ptr<T>());
    pack_inner<T>(x.const_data_ptr<T>(), x.stride(0), tokens, inputs, padded, pairs.mutable_data_ptr<T>());
    const T* a = rows.const_data_ptr<T>();
    const T* b = pairs.const_data_ptr<T>();
    float* c = grad.mutable_data_ptr<float>();
    const int64_t grad_stride = grad.stride(0);
    const int64_t row_tiles = (outputs + kRows - 1) / kRows;
    at::parallel_for(0, row_tiles * tiles, 1, [&](int64_t begin, int64_t end) {
      alignas(64) float scratch[kRows * kColumns];
      for (int64_t item = begin; item < end; ++item) {
        const int64_t row = item / tiles * kRows, column = item % tiles * kColumns;
        const int64_t tile_rows = std::min(kRows, outputs - row), columns = std::min(kColumns, inputs - column);
        const bool direct = columns == kColumns;
        for (int64_t t = 0; t < padded; t += kInnerChunk) {
          const int64_t inner = std::min(kInnerChunk, padded - t);
          const T* lhs = a + row * padded + t;
          const T* rhs = b + (item % tiles * padded + t) * kColumns;
          if (direct)
            tile_product<T>(tile_rows, inner, padded, kColumns, grad_stride, true, lhs, rhs,
                            c + row * grad_stride + column);
          else
            tile_product<T>(tile_rows, inner, padded, kColumns, kColumns, t > 0, lhs, rhs, scratch);
        }
        if (!direct)
          for (int64_t r = 0; r < tile_rows; ++r)
            for (int64_t n = 0; n < columns; ++n) c[(row + r) * grad_stride + column + n] += scratch[r * kColumns + n];
      }
      blas::brgemm_release(std::is_same_v<T, at::BFloat16>);
    });
  });
}

}  // namespace temper
