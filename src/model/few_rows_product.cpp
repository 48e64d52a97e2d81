#include "model/few_rows_product.h"

#include <cpuinfo.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cstring>

#include "core/error.h"
#include "model/cpu_dispatch.h"

namespace temper {

#if defined(__x86_64__)
#pragma GCC push_options
#pragma GCC target("avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma,bmi,bmi2,f16c,lzcnt,popcnt")
namespace {

constexpr int64_t kPairsInRow = 64;  // of the packed tile

// kRegisters of 16 columns.
template <int kRows, int kRegisters>
void sum_tile(const FewRowsTask& task) {
  __m512 sum[kRows][kRegisters];
  for (auto& row : sum)
    for (__m512& columns : row) columns = _mm512_setzero_ps();
  const c10::BFloat16* weights = task.weights;
  for (int64_t k = 0; k < task.num_inputs; k += 2, weights += 2 * kPairsInRow) {
    __m512bh pairs[kRegisters];
    for (int i = 0; i < kRegisters; ++i) pairs[i] = reinterpret_cast<__m512bh>(_mm512_loadu_si512(weights + 32 * i));
    for (int r = 0; r < kRows; ++r) {
      int32_t two;  // of x
      std::memcpy(&two, task.x + r * task.x_stride + k, sizeof two);
      const auto x = reinterpret_cast<__m512bh>(_mm512_set1_epi32(two));
      for (int i = 0; i < kRegisters; ++i) sum[r][i] = _mm512_dpbf16_ps(sum[r][i], x, pairs[i]);
    }
  }
  for (int r = 0; r < kRows; ++r)
    for (int i = 0; i < kRegisters; ++i) {
      float* out = task.out + r * task.out_stride + 16 * i;
      _mm512_storeu_ps(out, task.add ? _mm512_add_ps(sum[r][i], _mm512_loadu_ps(out)) : sum[r][i]);
    }
}

template <int kRows>
void sum_columns(const FewRowsTask& task) {
  if (task.num_columns == 64)
    sum_tile<kRows, 4>(task);
  else
    sum_tile<kRows, 2>(task);
}

}  // namespace
#pragma GCC pop_options

bool has_few_rows_product() {
  static const bool has = cpuinfo_initialize() && cpuinfo_has_x86_avx512bf16() && !cpuinfo_has_x86_amx_bf16();
  return has && cpu_level() == CpuLevel::kAvx512;
}

void few_rows_product(int64_t num_rows, const FewRowsTask& task) {
  switch (num_rows) {
    case 1:
      return sum_columns<1>(task);
    case 2:
      return sum_columns<2>(task);
    case 4:
      return sum_columns<4>(task);
    default:
      TEMPER_CHECK(false, "{} rows are not few", num_rows);
  }
}
#else
bool has_few_rows_product() { return false; }
void few_rows_product(int64_t, const FewRowsTask&) { TEMPER_CHECK(false, "this CPU has no such product"); }
#endif

}  // namespace temper
