#include "model/large_pages.h"

#include <ATen/ATen.h>
#if defined(__linux__)
#include <sys/mman.h>
#endif

#include <cstring>

namespace temper {
namespace {

constexpr int64_t kLargePage = int64_t{1} << 21;

}  // namespace

void advise_large_pages(const at::Tensor& x) {
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  const auto address = reinterpret_cast<uintptr_t>(x.const_data_ptr());
  const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + x.nbytes()) / kPage * kPage;
  if (x.device().is_cpu() && end > begin + 2 * static_cast<uintptr_t>(kLargePage))
    madvise(reinterpret_cast<void*>(begin), end - begin, MADV_HUGEPAGE);
#endif
}

void release_memory(const at::Tensor& x) {
  at::Tensor target = x;
#if defined(__linux__)
  constexpr uintptr_t kPage = 4096;
  if (x.device().is_cpu()) {
    auto* data = static_cast<char*>(target.mutable_data_ptr());
    const auto address = reinterpret_cast<uintptr_t>(data);
    const uintptr_t begin = (address + kPage - 1) / kPage * kPage, end = (address + x.nbytes()) / kPage * kPage;
    if (begin < end && madvise(reinterpret_cast<void*>(begin), end - begin, MADV_DONTNEED) == 0) {
      // Pages that others share keep their place.
      std::memset(data, 0, begin - address);
      std::memset(reinterpret_cast<char*>(end), 0, address + x.nbytes() - end);
      return;
    }
  }
#endif
  target.zero_();
}

at::Tensor empty_in_large_pages(at::IntArrayRef shape, at::ScalarType dtype) {
  const auto options = at::TensorOptions(dtype);
  const int64_t element = static_cast<int64_t>(c10::elementSize(dtype)), count = c10::multiply_integers(shape);
  if (count * element < 2 * kLargePage) return at::empty(shape, options);
  const at::Tensor storage = at::empty({count + kLargePage / element}, options);
  const auto address = static_cast<int64_t>(reinterpret_cast<uintptr_t>(storage.const_data_ptr()));
  const at::Tensor result =
      storage.narrow(0, (kLargePage - address % kLargePage) % kLargePage / element, count).view(shape);
  advise_large_pages(result);
  return result;
}

}  // namespace temper
