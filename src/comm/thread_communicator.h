// Ranks that are threads of one process: for tests, for debugging, and for runs against a simulated link. A thread of
// the world carries operations out one after the other, once every rank has begun them.
#pragma once
#include <memory>

#include "comm/communicator.h"

namespace temper {

// Time that an operation occupies the world's only link: latency + bytes on the wire of a ring algorithm / bandwidth.
struct SimulatedLink {
  double latency_s = 0;
  double gb_per_s = 0;  // 0: no limit
};

class ThreadWorld {
 public:
  explicit ThreadWorld(int num_ranks, const CommOptions& options = {}, const SimulatedLink& link = {});
  ~ThreadWorld();
  ThreadWorld(const ThreadWorld&) = delete;
  ThreadWorld& operator=(const ThreadWorld&) = delete;

  // Of one rank, for its thread. Destroying it before an operation's turn tells the others that the rank is gone.
  std::unique_ptr<Communicator> communicator(int rank);

  // Seconds that operations took so far, link included.
  double busy_s() const;

  struct State;

 private:
  std::shared_ptr<State> state_;  // shared with the communicators, which may outlive the world
};

}  // namespace temper
