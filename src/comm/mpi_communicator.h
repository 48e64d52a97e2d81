// Ranks that are processes, started by mpirun or srun. One thread, made here, makes every MPI call: it starts
// operations without blocking and tests them until they are done, so that they progress while the callers compute.
#pragma once
#include <memory>

#include "comm/communicator.h"

namespace temper {

// Whether a launcher (mpirun, srun --mpi=pmix) started this process as a rank. MPI is not touched otherwise.
bool is_launched_by_mpi();

class MpiWorld {
 public:
  // MPI_Init. CommError where MPI cannot start. At most one in a process's life.
  explicit MpiWorld(const CommOptions& options = {});
  // MPI_Finalize; MPI_Abort with exit code 4 where an operation has failed or the stack is being unwound, so that no
  // rank waits for this one.
  ~MpiWorld();
  MpiWorld(const MpiWorld&) = delete;
  MpiWorld& operator=(const MpiWorld&) = delete;

  // All ranks. Call it once; the others come from split().
  std::unique_ptr<Communicator> communicator();
  // Ends every rank, this one first, with this exit code. Does not return.
  [[noreturn]] void abort(int exit_code);

  int rank() const;
  // Among the ranks of this machine.
  int local_rank() const;

  struct State;

 private:
  std::shared_ptr<State> state_;  // shared with the communicators
  int num_uncaught_;              // exceptions, when this was made
};

}  // namespace temper
