// The communicator of a process that mpirun or srun started, for the device that it computes with.
#pragma once
#include <memory>

#include "comm/mpi_communicator.h"
#include "config/choices.h"
#include "trainer/ranks.h"

namespace temper {

// MPI's, or where the ranks compute with GPUs NCCL's over it: each rank then gets its GPU by its number on its machine,
// which is from now on this process's. A collective call. ConfigError, CommError.
std::unique_ptr<Communicator> connect_ranks(MpiWorld& world, Device device, const CommOptions& options = {});

// Says where the ranks of one replica, or of one tensor-parallel group, lie on several machines though one would hold
// them: their every layer then waits for the network. A collective call.
void warn_of_placement(const Ranks& ranks);

// Says where a machine's clock is seconds off the first rank's: times in logs and status.json then mislead. A
// collective call.
void warn_of_clocks(const Ranks& ranks);

}  // namespace temper
