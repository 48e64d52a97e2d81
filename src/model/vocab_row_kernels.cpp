#include "model/vocab_row_kernels.h"

#include <c10/util/BFloat16.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cstring>
#include <limits>

#include "model/cpu_dispatch.h"

#define TEMPER_KERNEL_FILE "model/vocab_row_kernels.inc"
#include "model/for_each_simd.inc"

namespace temper {
const VocabRowKernels& vocab_row_kernels() { return TEMPER_DISPATCH(kVocabRowKernels); }
}  // namespace temper
