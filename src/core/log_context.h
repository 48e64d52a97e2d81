// What each line of this process's log file says of the moment beside time and level: who, and how far. Thread-safe.
#pragma once
#include <string>

namespace temper {

// "rank=0 stage=grpo step=12"; empty: nothing. Standard error, which a person reads, stays without it.
void set_log_context(std::string fields);

}  // namespace temper
