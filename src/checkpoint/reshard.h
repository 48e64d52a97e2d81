// A checkpoint written anew in another number of shards: for tools that read one, or to spread the files out.
#pragma once
#include <string>

#include "checkpoint/file_system.h"

namespace temper {

// Writes the checkpoint at `from` to `to`, which must not exist, each tensor shared out evenly. Every byte of the old
// one is verified (FormatError); one new shard at a time is in memory.
void reshard_checkpoint(FileSystem& files, const std::string& from, const std::string& to, int num_shards);

}  // namespace temper
