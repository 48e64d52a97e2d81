// One to four rows times a tile of packed bf16 weights (model/matmul.h): generation of a few sequences reads each
// weight for little arithmetic, so what counts is that memory is read as it lies and that a tile costs no call into a
// library. The same bits as oneDNN's kernels give on a CPU that multiplies bf16 with AVX512-BF16: pairs of inputs in
// their order, summed in f32 from zero, what they are added to last. (AMX sums otherwise: there this kernel is not
// used.)
#pragma once
#include <c10/util/BFloat16.h>

#include <cstdint>

namespace temper {

struct FewRowsTask {
  const c10::BFloat16* x = nullptr;  // row r at x + r · x_stride
  int64_t x_stride = 0;
  const c10::BFloat16* weights = nullptr;  // [num_inputs / 2, 64, 2], from the first wanted column on
  int64_t num_inputs = 0;                  // even
  int64_t num_columns = 0;                 // 32 or 64
  bool add = false;                        // to what is in out
  float* out = nullptr;                    // row r at out + r · out_stride
  int64_t out_stride = 0;
};

constexpr int64_t kFewRows = 4;

// Whether this CPU has the kernel and oneDNN sums as it does.
bool has_few_rows_product();
// num_rows: 1, 2 or 4. REQUIRES: has_few_rows_product().
void few_rows_product(int64_t num_rows, const FewRowsTask& task);

}  // namespace temper
