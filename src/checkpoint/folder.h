// One checkpoint folder, written and read as a whole; the store above decides which and when. The writer takes boxes in
// any number of shards, so that what one rank writes and what many write is one format.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/atomic_directory.h"
#include "checkpoint/data_file.h"
#include "checkpoint/manifest.h"

namespace temper {

// Writes a shard of the boxes, whose start and size are given, and sets their shard and offset. data[t][b]: the
// contiguous bytes of box b of tensor t.
FileRecord write_shard(FileSystem& files, const std::string& folder, int shard, std::vector<TensorRecord>& tensors,
                       const std::vector<std::vector<const char*>>& data);

// manifest.files: the shards, which lie in the folder. Adds global.h5, the manifest and COMMITTED; the folder may be
// committed then. Returns the manifest's text. FormatError where the boxes leave an element out or hold one twice.
std::string complete_checkpoint_folder(FileSystem& files, AtomicDirectory& folder, const std::string& path,
                                       Manifest manifest);
// Another node's folder of the same checkpoint, into which global.h5 has been copied: syncs and verifies that, and adds
// the manifest as it was written there.
void complete_folder_part(FileSystem& files, const AtomicDirectory& folder, const FileRecord& global,
                          const std::string& manifest_text);

// All of it, and renames the folder to `path` (docs/checkpoint_format.md, "Commit").
void commit_checkpoint_folder(FileSystem& files, AtomicDirectory& folder, const std::string& path, Manifest manifest);

// All of it by one writer: the boxes' shard is given too, 0 to num_shards - 1.
void write_checkpoint_folder(FileSystem& files, const std::string& path, const CheckpointHeader& header,
                             const Mesh& mesh, std::vector<TensorRecord> tensors,
                             const std::vector<std::vector<const char*>>& data, int num_shards);

// Verifies name, COMMITTED, manifest and the sizes of all files. FormatError says what is wrong.
Manifest open_checkpoint_folder(FileSystem& files, const std::string& path);

// A folder of which files may be missing: they may lie elsewhere.
struct FolderPart {
  Manifest manifest;
  std::string text;                // of the manifest
  std::vector<std::string> wrong;  // [file] what keeps the file from being read here; empty: nothing
  // Two folders with one identity hold the same checkpoint: their manifests are equal.
  std::string identity() const;
};
FolderPart open_folder_part(FileSystem& files, const std::string& path);

// Reads what the plan wants. kEverything: all other blocks of all files are read too, to be verified.
std::vector<Damage> read_checkpoint_files(FileSystem& files, const std::string& path, const Manifest& manifest,
                                          ReadPlan plan, ReadScope scope, ReadMode mode, bool from_disk = false);

// The steps of the checkpoint folders in a directory, newest first; good or not is not looked at.
std::vector<int64_t> find_steps(FileSystem& files, const std::string& directory);

}  // namespace temper
