// Who holds a copy of whose shard: each node's by the next node in turn, so that the loss of one node's disk loses
// nothing. What is sent goes over communicators of two ranks each.
#pragma once
#include <memory>
#include <string>
#include <vector>

#include "checkpoint/agreement.h"
#include "checkpoint/manifest.h"
#include "checkpoint/nodes.h"

namespace temper {

class Partners {
 public:
  // A collective call of `ranks`. With one node there is no partner, and nothing is sent.
  Partners(Communicator& ranks, const NodeLayout& nodes);

  bool any() const { return !rounds_.empty(); }
  // The rank that gets a copy of this one's shard. REQUIRES: any()
  int receiver_of(int rank) const { return receivers_[static_cast<size_t>(rank)]; }

  // A collective call. records: [rank] the shard that it wrote to its `folder`; nothing where the name is empty.
  // Each receiver writes the shards that come to it into its own `folder`, synced and read back. Returns what kept this
  // rank from it; empty: nothing did.
  std::string exchange(FileSystem& files, const std::vector<FileRecord>& records, const std::string& folder) const;

 private:
  struct Round {
    std::unique_ptr<Communicator> pair;  // of one sender, its rank 0, and one receiver; alone: this rank has no part
    int sender = -1;                     // rank in the world
  };
  int rank_;
  std::vector<int> receivers_;
  std::vector<Round> rounds_;
};

// For tests: the senders of each round with receivers[rank]; in a round no rank has two parts.
std::vector<std::vector<int>> rounds_of(const std::vector<int>& receivers);
// The receiver of each rank: ranks of the next node in turn.
std::vector<int> receivers_of(const NodeLayout& nodes, int num_ranks);

}  // namespace temper
