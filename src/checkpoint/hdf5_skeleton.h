// The structure of an HDF5 file without its data: HDF5 lays the file out through a driver that keeps the metadata pages
// in memory and never touches a disk, and says where each data set's bytes belong. The writer puts both into the file
// itself, so every byte and every failure passes through FileSystem (HDF5 1.10 loses ENOSPC), and no data goes through
// HDF5's buffers. Debian's HDF5 has no lock of its own: these functions take one, so any thread may call them.
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <vector>

#include "checkpoint/boxes.h"

namespace temper {

struct Hdf5Skeleton {
  static constexpr int64_t kPageBytes = 4096;
  int64_t size_bytes = 0;
  std::map<int64_t, std::string> pages;  // page index → its bytes; pages that hold no metadata are absent
  std::vector<int64_t> offsets;          // of each data set asked for, in bytes
};

// One contiguous data set of a shard: a whole tensor or one box of it.
struct ShardPiece {
  std::string name;  // data set path: the tensor's name, for its k-th further box in one shard with "#k" after it
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> size;
  std::vector<int64_t> tensor_shape;  // kept as attributes where the piece is not the whole tensor
  std::vector<int64_t> start;
};

Hdf5Skeleton make_shard_skeleton(const std::vector<ShardPiece>& pieces);

// global.h5: each tensor whole, as a virtual data set over the shards, which lie beside it.
Hdf5Skeleton make_global_skeleton(const std::vector<TensorRecord>& tensors);

// The data set's path for each box of the tensor, in the order of the boxes.
std::vector<std::string> piece_names(const TensorRecord& tensor);

}  // namespace temper
