#include "model/elementwise_kernels.h"

#include <c10/util/BFloat16.h>
#if defined(__x86_64__)
#include <immintrin.h>
#endif

#include <cmath>
#include <cstring>
#include <type_traits>

#include "model/cpu_dispatch.h"

#define TEMPER_KERNEL_FILE "model/elementwise_kernels.inc"
#include "model/for_each_simd.inc"

namespace temper {
const ElementwiseKernels& elementwise_kernels() { return TEMPER_DISPATCH(kElementwiseKernels); }
}  // namespace temper
