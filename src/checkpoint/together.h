// One checkpoint folder, saved and loaded by all ranks together: each writes the parts that it holds as a shard of its
// own, and reads the parts that it wants. The ranks agree before a folder gets its final name. On one rank the same.
#pragma once
#include <string>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"

namespace temper {

// A collective call. The first rank makes the folder; every rank that holds anything writes its shard; when all have,
// the first adds manifest and global.h5, checks that each element of each tensor is there exactly once, and commits.
// header and mesh count on the first rank, which names every tensor. An error of one rank is thrown on all, and then
// nothing appears under the final name.
void save_together(FileSystem& files, const std::string& path, const CheckpointState& state, const Agreement& ranks);

// A collective call. Every block that holds what this rank wants is read here; those that hold no tensor's bytes fall
// to the ranks in turn, so that where all ranks together want everything, every byte is verified, and read no more
// often than it is wanted. FormatError on all ranks where one finds damage, ConfigError where something does not fit;
// IoError also where ranks find different checkpoints under one path.
LoadedCheckpoint load_together(FileSystem& files, const std::string& path, const ChooseDestinations& destinations,
                               const Agreement& ranks);

}  // namespace temper
