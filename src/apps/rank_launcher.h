// Starts the trainer's ranks on this machine: `mpirun -n RANKS temper train …`, watches them, and turns their end into
// one exit code and one sentence.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace temper {

// arguments: of `temper train`. Returns the ranks' exit code; kComm, with the rank named, where one was killed. A stop
// request (SIGINT, SIGTERM, SIGUSR1) is passed on: the ranks finish their step, save, and exit with kStopped. They end
// when this process does.
int run_ranks(int64_t num_ranks, const std::vector<std::string>& arguments);

}  // namespace temper
