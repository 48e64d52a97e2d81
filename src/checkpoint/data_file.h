// The HDF5 files of a checkpoint as bytes: written from the tensors' own memory with their checksums taken on the way,
// read back block by block straight into the destination tensors, each block checked before it counts.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/hdf5_skeleton.h"
#include "checkpoint/manifest.h"
#include "checkpoint/plan.h"

namespace temper {

// One local piece of a tensor to be written: box.size elements, row-major and contiguous at `data`.
struct WritePiece {
  const TensorRecord* tensor = nullptr;
  const Box* box = nullptr;
  const char* data = nullptr;
};

// Writes a new file: metadata pages, then pieces[i] at skeleton.offsets[i]; reserved first, synced, closed.
FileRecord write_data_file(FileSystem& files, const std::string& folder, const std::string& name,
                           const Hdf5Skeleton& skeleton, const std::vector<WritePiece>& pieces);

struct Damage {
  std::string file;
  int64_t block = -1;  // index of the 1 MiB block; -1: the file as a whole
  std::string text;
};
std::string describe(const Damage& problem);

enum class ReadScope { kNeeded, kEverything };
enum class ReadMode { kStopAtFirstProblem, kFindAllProblems };

// Reads the plan's blocks, compares each with the record and copies what the plan wants of it. Returns what is wrong,
// empty if nothing; the wanted boxes hold the saved bytes only then. IoError if the disk fails. kFindAllProblems reads
// the whole file, and checks its XXH3-128 too.
std::vector<Damage> read_data_file(FileSystem& files, const std::string& folder, const FileRecord& record,
                                   const FilePlan& plan, ReadMode mode, bool from_disk = false);

}  // namespace temper
