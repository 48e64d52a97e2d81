#include "core/system_memory.h"

#include <gtest/gtest.h>

#include <cstring>
#include <memory>

namespace temper {
namespace {

TEST(SystemMemory, ThePeakCountsWhatWasTouched) {
  const int64_t before = peak_rss_bytes();
  constexpr size_t kBytes = size_t{96} << 20;
  const auto block = std::make_unique_for_overwrite<char[]>(kBytes);
  std::memset(block.get(), 1, kBytes);
  EXPECT_EQ(block[kBytes / 2], 1);
  EXPECT_GE(peak_rss_bytes() - before, int64_t{60} << 20);
}

TEST(SystemMemory, SomeIsAvailable) {
  EXPECT_GT(available_memory_bytes(), int64_t{16} << 20);
  EXPECT_LT(available_memory_bytes(), int64_t{1} << 50);
}

}  // namespace
}  // namespace temper
