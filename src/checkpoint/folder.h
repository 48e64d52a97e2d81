// One checkpoint folder, written and read as a whole; the store above decides which and when. The writer takes boxes in
// any number of shards, so that what one rank writes and what many write is one format.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/data_file.h"
#include "checkpoint/manifest.h"

namespace temper {

// Writes and commits `path` (docs/checkpoint_format.md, "Commit"). tensors: the boxes' shard, start and size are given,
// their offsets are chosen here. data[t][b]: the contiguous bytes of box b of tensor t. shards are numbered 0 to
// num_shards - 1.
void write_checkpoint_folder(FileSystem& files, const std::string& path, const CheckpointHeader& header,
                             const Mesh& mesh, std::vector<TensorRecord> tensors,
                             const std::vector<std::vector<const char*>>& data, int num_shards);

// Verifies name, COMMITTED, manifest and the sizes of all files. FormatError says what is wrong.
Manifest open_checkpoint_folder(FileSystem& files, const std::string& path);

// Reads what the plan wants. kEverything: all other blocks of all files are read too, to be verified.
std::vector<Damage> read_checkpoint_files(FileSystem& files, const std::string& path, const Manifest& manifest,
                                          ReadPlan plan, ReadScope scope, ReadMode mode, bool from_disk = false);

}  // namespace temper
