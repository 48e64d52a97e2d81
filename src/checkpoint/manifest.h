// manifest.json, the authority of a checkpoint: what was saved, where each tensor's bytes lie, the checksum of every
// block of every file. Nothing else in the folder is believed. Byte layout and meaning: docs/checkpoint_format.md.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "checkpoint/boxes.h"
#include "checkpoint/checkpoint.h"

namespace temper {

constexpr int64_t kFormatVersion = 1;
constexpr int64_t kBlockBytes = int64_t{1} << 20;
constexpr int64_t kMaxManifestBytes = int64_t{1} << 30;

constexpr char kManifestName[] = "manifest.json";
constexpr char kCommittedName[] = "COMMITTED";
constexpr char kGlobalName[] = "global.h5";

struct FileRecord {
  std::string name;
  int64_t size_bytes = 0;
  std::string xxh3_128;          // of the whole file
  std::vector<uint64_t> blocks;  // XXH3-64 of each 1 MiB, the last one shorter
};

struct Manifest {
  CheckpointHeader header;
  std::string writer;  // program and version
  Mesh mesh;
  std::vector<FileRecord> files;  // shard_00000.h5 …, global.h5
  std::vector<TensorRecord> tensors;
};

std::string shard_name(int shard);                 // shard_00000.h5
std::string step_name(int64_t step);               // step_000120
int64_t parse_step_name(const std::string& name);  // -1 if it is no such name

// What is wrong with a tensor's name, empty if nothing.
std::string find_name_fault(const std::string& name);

std::string encode_manifest(const Manifest& manifest);

// What a rank that wrote a shard tells the one that writes the manifest: the file, and its boxes of the tensors.
struct ShardReport {
  FileRecord file;
  std::vector<TensorRecord> tensors;
};
std::string encode_shard_report(const ShardReport& report);
ShardReport parse_shard_report(const std::string& text);

// Verifies the checksum, then the version, then every claim that can be checked without the files; FormatError names
// `path`.
Manifest parse_manifest(std::string_view bytes, const std::string& path);

}  // namespace temper
