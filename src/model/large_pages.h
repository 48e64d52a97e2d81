// Memory for what every step reads whole: weights and the cache. In pages of 2 MiB an access costs no page walk and a
// first write takes one fault where it took 512. And memory that is not needed for a while.
#pragma once
#include <ATen/core/Tensor.h>

namespace temper {

// Asks the kernel for large pages in a tensor of the CPU that is large enough; a wish, failure costs time alone.
void advise_large_pages(const at::Tensor& x);

// Gives the memory behind a contiguous tensor, which may be a view, back to the system; it reads as zeros afterwards,
// and what is written there takes memory again. REQUIRES: private memory (no mapped file) where it is on the CPU.
void release_memory(const at::Tensor& x);

// An uninitialised tensor whose memory begins at a large page where it fills several.
at::Tensor empty_in_large_pages(at::IntArrayRef shape, at::ScalarType dtype);

}  // namespace temper
