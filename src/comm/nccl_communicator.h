// Ranks that have a GPU each: tensors on the GPU travel by NCCL, tensors of the host, barriers and texts by the
// communicator beneath (MPI). The calling thread starts operations on a stream of the communicator's own, behind what
// it has started on its current stream; a thread made here sees them end, and ends all of them where NCCL reports an
// error.
#pragma once
#include <memory>

#include "comm/communicator.h"

namespace temper {

// Whether this build has NCCL.
bool has_nccl();

// A collective call of all ranks of `host`, which stays in use beneath. Tensors are of the host or of GPU `device`,
// which no other rank has. What split() makes is of the same kind; abort() or an error of one ends all of them, and the
// host's. ConfigError in a build without NCCL; CommError where NCCL cannot connect the ranks in options.timeout.
std::unique_ptr<Communicator> make_nccl_communicator(std::unique_ptr<Communicator> host, int device,
                                                     const CommOptions& options = {});

// Two processes that share no world. `id` is new_nccl_id() of one of them; each is one rank. Tensors of the GPU alone:
// no texts, no barriers, no split(). CommError where the other does not connect in options.timeout.
std::string new_nccl_id();
std::unique_ptr<Communicator> make_nccl_pair(const std::string& id, int rank, int device,
                                             const CommOptions& options = {});

// The GPU of a rank, by its number among the ranks of its machine. ConfigError where the machine has none; a warning
// where ranks have to share.
int device_of_local_rank(int local_rank);

}  // namespace temper
