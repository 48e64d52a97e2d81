// What `temper checkpoint ls|info|verify|export` prints and reads. A path may be one checkpoint, a stage's folder of
// them, a run's checkpoints folder, or a run directory. Nothing here writes.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"

namespace temper {

std::vector<std::string> find_checkpoints(FileSystem& files, const std::string& path);  // newest first in each stage

std::string list_checkpoints(FileSystem& files, const std::string& path);     // ls: one line each
std::string describe_checkpoint(FileSystem& files, const std::string& path);  // info: of the first that ls shows

struct VerifyReport {
  bool good = true;
  std::string text;  // one line a checkpoint, one more a problem: file, block, what is wrong
};
VerifyReport verify_checkpoints(FileSystem& files, const std::string& path);  // every byte of every one

// Tensors whose names start with `prefix` ("model/"), into new memory, verified; for export.
std::vector<TensorEntry> read_tensors(FileSystem& files, const std::string& path, const std::string& prefix);

}  // namespace temper
