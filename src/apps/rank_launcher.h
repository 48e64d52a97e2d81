// Starts the trainer's ranks on this machine: `mpirun -n RANKS temper train …`, watches them, starts them again where
// one was lost, and turns their end into one exit code and one sentence.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"

namespace temper {

// arguments: of `temper train`. Returns the ranks' exit code. Where a rank was killed, or left the others waiting
// (kComm), all are started again from the newest checkpoint, train.max_restarts times, with a growing pause; after that
// kComm, with the rank named. A stop request (SIGINT, SIGTERM, SIGUSR1) is passed on: the ranks finish their step,
// save, and exit with kStopped. They end when this process does.
int run_ranks(const Config& config, std::vector<std::string> arguments);

}  // namespace temper
