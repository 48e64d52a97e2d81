// Memory for what every step reads whole: weights and the cache. In pages of 2 MiB an access costs no page walk and a
// first write takes one fault where it took 512.
#pragma once
#include <ATen/core/Tensor.h>

namespace temper {

// Asks the kernel for large pages in a tensor of the CPU that is large enough; a wish, failure costs time alone.
void advise_large_pages(const at::Tensor& x);

// An uninitialised tensor whose memory begins at a large page where it fills several.
at::Tensor empty_in_large_pages(at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace temper
