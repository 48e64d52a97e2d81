// Which instruction set the CPU kernels run with, chosen once at run time, and how they share out work. A kernel's text
// lives in a .inc file that for_each_simd.inc compiles for AVX-512, AVX2 and the baseline in namespaces temper::avx512,
// temper::avx2 and temper::baseline; each exports one table of function pointers. Thread-safe.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <functional>

namespace temper {

enum class CpuLevel { kBaseline = 0, kAvx2 = 1, kAvx512 = 2 };

CpuLevel cpu_level();

// Lowers the level below what the machine offers (tests run every level that it has); returns the level now in use.
CpuLevel limit_cpu_level(CpuLevel limit);

// What the kernels read and write; other types take the way over LibTorch's operators.
inline bool is_kernel_dtype(c10::ScalarType dtype) {
  return dtype == c10::ScalarType::Float || dtype == c10::ScalarType::BFloat16;
}

// Runs task(0) .. task(count - 1) on LibTorch's threads, each task by one thread, started in this order: put long tasks
// first. Tasks write to separate memory, so the result does not depend on who runs what.
void parallel_tasks(int64_t count, const std::function<void(int64_t)>& task);

}  // namespace temper
