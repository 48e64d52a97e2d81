// What to read of a checkpoint for what is wanted: any parts of its tensors, whatever ranks wrote them. The stored
// boxes that meet a wanted box say which bytes of which file are needed; these are rounded out to the blocks that the
// manifest has checksums of, and no other block is read. No communication: each reader plans for itself.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/manifest.h"

namespace temper {

// Part of a tensor in the reader's memory.
struct WantedBox {
  const TensorRecord* tensor = nullptr;
  std::vector<int64_t> start, size;  // size[d] >= 1
  char* data = nullptr;              // its elements, row-major without gaps
};

// Where a stored and a wanted box meet.
struct BoxCopy {
  const Box* stored = nullptr;
  char* data = nullptr;      // of the wanted box
  int64_t stored_bytes = 0;  // of the whole stored box
  int64_t run_bytes = 0;     // that lie together in both
  int64_t num_runs = 1;
  int64_t first_stored = 0, first_wanted = 0;  // bytes to the first run, from the start of each box
  struct Dim {
    int64_t count, stored_stride, wanted_stride;  // bytes
  };
  std::vector<Dim> outer;  // the runs' grid, outermost first

  struct Run {
    int64_t stored, wanted;  // bytes, from the start of each box
  };
  Run run(int64_t index) const;               // ascending in both
  int64_t first_run(int64_t position) const;  // the first that ends behind this byte of the stored box
};

struct BlockRange {
  int64_t begin = 0, end = 0;  // indices of blocks of kBlockBytes
};

struct FilePlan {
  std::vector<BlockRange> blocks;  // ascending, apart
  std::vector<BoxCopy> copies;     // in the order of the stored boxes in the file

  // If [begin, end) of the file is one piece of one wanted box: its place there, else null.
  char* direct(int64_t begin, int64_t end) const;
  // Copies what is wanted of [begin, end) of the file, which lies at `bytes`.
  void copy(int64_t begin, int64_t end, const char* bytes) const;

 private:
  std::vector<BoxCopy>::const_iterator first(int64_t position) const;  // that ends behind this byte of the file
};

// Every block, to be verified; nothing is copied.
FilePlan whole_file(const FileRecord& record);

struct ReadPlan {
  std::vector<FilePlan> files;  // as in the manifest
  int64_t needed_bytes = 0;     // of the wanted boxes
  int64_t read_bytes = 0;       // the blocks
};

// REQUIRES: the wanted boxes lie inside their tensors, which are the manifest's own records; the manifest outlives the
// plan.
// A manifest covers every element exactly once (parse_manifest checks it), so every wanted one is found.
ReadPlan plan_reads(const Manifest& manifest, const std::vector<WantedBox>& wanted);

// Adds, of every num_ranks-th file from the rank-th on, the blocks that hold no tensor's bytes (HDF5's own): nobody
// wants these, yet all is to be verified.
void add_blocks_between(const Manifest& manifest, int rank, int num_ranks, ReadPlan* plan);

}  // namespace temper
