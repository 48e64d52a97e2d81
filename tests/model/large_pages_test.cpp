#include "model/large_pages.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <algorithm>
#include <vector>

namespace temper {
namespace {

// Pages of a tensor that have memory behind them; the counters of /proc lag behind.
int64_t num_resident_pages(const at::Tensor& x) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const uintptr_t begin = address / page * page, end = (address + x.nbytes() + page - 1) / page * page;
  std::vector<unsigned char> resident((end - begin) / page);
  EXPECT_EQ(mincore(reinterpret_cast<void*>(begin), end - begin, resident.data()), 0);
  return std::count_if(resident.begin(), resident.end(), [](unsigned char flags) { return (flags & 1) != 0; });
}

TEST(ReleaseMemory, OfAViewGivesItsPagesBackAndReadsAsZeros) {
  constexpr int64_t kElements = 16 << 20;  // 64 MiB
  const at::Tensor whole = at::ones({kElements});
  EXPECT_GE(num_resident_pages(whole), 16384);
  const at::Tensor part = whole.narrow(0, 1001, kElements - 5000);  // begins and ends within a page
  release_memory(part);
  EXPECT_LE(num_resident_pages(part), 2);
  EXPECT_EQ(part.count_nonzero().item<int64_t>(), 0);
  EXPECT_EQ(whole.narrow(0, 0, 1001).sum().item<float>(), 1001);
  EXPECT_EQ(whole.narrow(0, kElements - 3999, 3999).sum().item<float>(), 3999);
  part.fill_(2);
  EXPECT_EQ(part.sum(at::kDouble).item<double>(), 2.0 * static_cast<double>(kElements - 5000));
}

TEST(ReleaseMemory, OfAFewElementsSetsThemToZero) {
  const at::Tensor whole = at::ones({100});
  release_memory(whole.narrow(0, 10, 20));
  EXPECT_EQ(whole.sum().item<float>(), 80);
}

}  // namespace
}  // namespace temper
