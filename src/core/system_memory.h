// How much memory this process may still take, and how much it has taken at most: for refusals before an allocation,
// and for the figures of benches and metrics.
#pragma once
#include <cstdint>

namespace temper {

// The system's available memory, or what the process's control group (v2) leaves of it, whichever is less.
int64_t available_memory_bytes();

// Largest resident set so far, or since reset_peak_rss() where the kernel allows that.
int64_t peak_rss_bytes();
void reset_peak_rss();

// Gives what was freed back to the system. The allocator keeps freed pieces below 32 MB for itself, which after loading
// a model are tens of megabytes between those that stay.
void return_freed_memory();

}  // namespace temper
