// The other questions of `temper bench checkpoint`, whose options bench_checkpoint.cpp declares.
#pragma once
#include "apps/bench.h"
#include "apps/command_line.h"

namespace temper {

// What saves in the background cost the training beside them.
void bench_with_training(const CommandLine& line, const BenchReport& report);

// Flips single bits of a checkpoint's files, as often as asked, and loads it after each. Exit code: 0 if no load gave
// other values than were saved, 5 otherwise.
int bench_flips(const CommandLine& line, const BenchReport& report);

}  // namespace temper
