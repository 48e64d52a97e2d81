#include "model/cpu_dispatch.h"

#include <ATen/Parallel.h>

#include <atomic>

namespace temper {

namespace {
CpuLevel detect() {
#if defined(__x86_64__)
  const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("bmi2");
  if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
      __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl"))
    return CpuLevel::kAvx512;
  if (avx2) return CpuLevel::kAvx2;
#endif
  return CpuLevel::kBaseline;
}

std::atomic<CpuLevel>& current_level() {
  static std::atomic<CpuLevel> level{detect()};
  return level;
}
}  // namespace

CpuLevel cpu_level() { return current_level().load(std::memory_order_relaxed); }

CpuLevel limit_cpu_level(CpuLevel limit) {
  const CpuLevel level = std::min(limit, detect());
  current_level().store(level);
  return level;
}

void parallel_tasks(int64_t count, const std::function<void(int64_t)>& task) {
  const int64_t num_threads = std::min<int64_t>(count, at::get_num_threads());
  if (num_threads <= 1 || at::in_parallel_region()) {
    for (int64_t i = 0; i < count; ++i) task(i);
    return;
  }
  std::atomic<int64_t> next{0};
  at::parallel_for(0, num_threads, 1, [&](int64_t, int64_t) {
    for (int64_t i = next.fetch_add(1); i < count; i = next.fetch_add(1)) task(i);
  });
}

}  // namespace temper
