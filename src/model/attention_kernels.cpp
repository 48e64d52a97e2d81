#include "model/attention_kernels.h"

#include <c10/util/BFloat16.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <algorithm>
#include <cmath>
#include <cstring>
#include <limits>
#include <type_traits>
#include <utility>
#include <vector>

#include "model/cpu_dispatch.h"

#define TEMPER_KERNEL_FILE "model/attention_kernels.inc"
#include "model/for_each_simd.inc"

namespace temper {
const AttentionKernels& attention_kernels() { return TEMPER_DISPATCH(kAttentionKernels); }
}  // namespace temper
