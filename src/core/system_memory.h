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
// For a process that allocates the same again and again, as training does from step to step: what it frees stays with
// it (up to 1 GB beyond what is in use), so that it is not cleared page by page when it is wanted again.
void keep_freed_memory();

}  // namespace temper
