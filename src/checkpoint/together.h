// One checkpoint folder, saved and loaded by all ranks together: each writes the parts that it holds as a shard of its
// own, and reads the parts that it wants. The ranks agree before a folder gets its final name. On one rank the same.
#pragma once
#include <string>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/nodes.h"
#include "checkpoint/partners.h"

namespace temper {

// Where the ranks' folders are: one for all, or one a node.
struct Spread {
  NodeLayout nodes;
  const Partners* partners = nullptr;  // null: no copies on other nodes
};

// A collective call. The first rank makes the folder; every rank that holds anything writes its shard; when all have,
// the first adds manifest and global.h5, checks that each element of each tensor is there exactly once, and commits.
// header and mesh count on the first rank, which names every tensor. An error of one rank is thrown on all, and then
// nothing appears under the final name.
// With several nodes the first rank of each makes one, with its ranks' shards (and a neighbour's), manifest and
// global.h5; all are committed once all are complete. Returns what kept a copy from its partner, the same on all ranks;
// empty: every one was acknowledged, or there are no partners.
std::string save_together(FileSystem& files, const std::string& path, const CheckpointState& state,
                          const Agreement& ranks, const Spread& spread = {});

// A collective call. Every block that holds what this rank wants is read here; those that hold no tensor's bytes fall
// to the ranks in turn, so that where all ranks together want everything, every byte is verified, and read no more
// often than it is wanted. FormatError on all ranks where one finds damage, ConfigError where something does not fit;
// IoError also where ranks find different checkpoints under one path.
LoadedCheckpoint load_together(FileSystem& files, const std::string& path, const ChooseDestinations& destinations,
                               const Agreement& ranks);

}  // namespace temper
