#include "core/system_memory.h"

#include <malloc.h>
#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <optional>
#include <string>

namespace temper {
namespace {

// The number behind `key` in a file of "key number" lines; an empty key: the number that the file begins with.
std::optional<int64_t> number_in(const std::string& path, const std::string& key) {
  std::ifstream file(path);
  std::string word;
  int64_t number = 0;
  if (key.empty()) {
    if (file >> number) return number;  // "max" is no number: no limit
    return std::nullopt;
  }
  while (file >> word)
    if (word == key && file >> number) return number;
  return std::nullopt;
}

std::optional<int64_t> left_in_control_group() {
  std::ifstream file("/proc/self/cgroup");
  std::string line, path = "/";
  while (std::getline(file, line))
    if (line.rfind("0::", 0) == 0) path = line.substr(3);
  const std::string folder = "/sys/fs/cgroup" + path + "/";
  const auto limit = number_in(folder + "memory.max", "");
  const auto used = number_in(folder + "memory.current", "");
  if (!limit || !used) return std::nullopt;
  // Cached files count as used but are given up on demand.
  return *limit - *used + number_in(folder + "memory.stat", "file").value_or(0);
}

}  // namespace

int64_t available_memory_bytes() {
  const int64_t system = number_in("/proc/meminfo", "MemAvailable:").value_or(INT64_MAX / 1024) * 1024;
  return std::max<int64_t>(0, std::min(system, left_in_control_group().value_or(system)));
}

int64_t peak_rss_bytes() {
  if (const auto peak = number_in("/proc/self/status", "VmHWM:")) return *peak * 1024;
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  return int64_t{usage.ru_maxrss} * 1024;
}

void reset_peak_rss() { std::ofstream("/proc/self/clear_refs") << 5; }

void return_freed_memory() { malloc_trim(0); }

void keep_freed_memory() {
  constexpr int kLargestFromHeap = 32 << 20;  // glibc allows no more; what is larger is mapped each time
  mallopt(M_MMAP_THRESHOLD, kLargestFromHeap);
  mallopt(M_TRIM_THRESHOLD, 1 << 30);
}

}  // namespace temper
