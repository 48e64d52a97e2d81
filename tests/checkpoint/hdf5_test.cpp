// What other programs see: the shards and global.h5, read by the HDF5 library itself. (tests/support/read_checkpoint.py
// does the same with h5py.)
#include <gmock/gmock.h>
#include <hdf5.h>

#include <chrono>
#include <filesystem>
#include <thread>

#include "checkpoint/folder.h"
#include "checkpoint/hdf5_skeleton.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

// Reads a whole data set as floats, with sources of virtual ones taken from beside the file alone.
std::vector<float> read_floats(const std::string& path, const std::string& name,
                               std::vector<hsize_t>* shape = nullptr) {
  const hid_t file = H5Fopen(path.c_str(), H5F_ACC_RDONLY, H5P_DEFAULT);
  EXPECT_GE(file, 0) << path;
  const hid_t access = H5Pcreate(H5P_DATASET_ACCESS);
  H5Pset_virtual_prefix(access, "${ORIGIN}");
  const hid_t data_set = H5Dopen2(file, name.c_str(), access);
  EXPECT_GE(data_set, 0) << name;
  const hid_t space = H5Dget_space(data_set);
  std::vector<hsize_t> dims(static_cast<size_t>(H5Sget_simple_extent_ndims(space)));
  H5Sget_simple_extent_dims(space, dims.data(), nullptr);
  std::vector<float> values(static_cast<size_t>(H5Sget_simple_extent_npoints(space)));
  EXPECT_GE(H5Dread(data_set, H5T_NATIVE_FLOAT, H5S_ALL, H5S_ALL, H5P_DEFAULT, values.data()), 0) << name;
  if (shape != nullptr) *shape = dims;
  H5Sclose(space);
  H5Dclose(data_set);
  H5Pclose(access);
  H5Fclose(file);
  return values;
}

std::vector<float> floats_of(const at::Tensor& tensor) {
  const at::Tensor values = tensor.to(at::kFloat).contiguous();
  const auto* data = values.const_data_ptr<float>();
  return std::vector<float>(data, data + values.numel());
}

TEST(Hdf5Files, HoldEveryTensorUnderItsNameAsFloatsOrIntegers) {
  TemporaryFolder folder;
  FileSystem files;
  CheckpointState state = example_state(1);
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kLong, at::kInt, at::kShort,
                               at::kChar, at::kByte, at::kBool})
    state.tensors.push_back({format("all/{}", c10::toString(dtype)), at::arange(70).to(dtype).view({7, 10})});
  state.tensors.push_back({"all/large", at::arange(300000, at::kFloat).view({300, 1000})});
  const std::string path = CheckpointStore(files, folder.path(), 2).save(state);
  for (const TensorEntry& entry : state.tensors) {
    if (entry.name.rfind("all/", 0) != 0) continue;
    for (const char* file : {"/shard_00000.h5", "/global.h5"}) {
      std::vector<hsize_t> shape;
      EXPECT_EQ(read_floats(path + file, entry.name, &shape), floats_of(entry.tensor)) << file << " " << entry.name;
      EXPECT_EQ(std::vector<int64_t>(shape.begin(), shape.end()), entry.tensor.sizes().vec());
    }
  }
  EXPECT_EQ(read_floats(path + "/global.h5", "optim/step"), floats_of(state.tensors[3].tensor));
}

TEST(Hdf5Files, GlobalJoinsTheBoxesOfAllShards) {
  TemporaryFolder folder;
  FileSystem files;
  const at::Tensor whole = at::arange(70, at::kFloat).view({7, 10});
  TensorRecord record{"model/w", at::kFloat, {7, 10}, {}};
  std::vector<at::Tensor> parts;
  std::vector<const char*> data;
  const std::vector<std::vector<int64_t>> splits = {{0, 0, 2, 7}, {0, 7, 5, 3}, {2, 0, 5, 7}, {5, 7, 2, 3}};
  for (size_t i = 0; i < splits.size(); ++i) {
    const auto& s = splits[i];
    parts.push_back(whole.narrow(0, s[0], s[2]).narrow(1, s[1], s[3]).contiguous());
    data.push_back(static_cast<const char*>(parts.back().const_data_ptr()));
    record.boxes.push_back({static_cast<int32_t>(i / 2), 0, {s[0], s[1]}, {s[2], s[3]}});
  }
  const std::string path = folder.path() + "/step_000001";
  write_checkpoint_folder(files, path, example_state(1).header, Mesh{1, 2, 1}, {record}, {data}, 2);
  EXPECT_EQ(read_floats(path + "/global.h5", "model/w"), floats_of(whole));
  EXPECT_EQ(read_floats(path + "/shard_00001.h5", "model/w"), floats_of(parts[2]));
  EXPECT_EQ(read_floats(path + "/shard_00001.h5", "model/w#1"), floats_of(parts[3]));
  EXPECT_EQ(read_floats(path + "/shard_00001.h5", "model/w").size(), 35u);

  // HDF5 reads a missing source without an error; at least the values cannot be mistaken for weights.
  std::filesystem::remove(path + "/shard_00001.h5");
  EXPECT_TRUE(std::isnan(read_floats(path + "/global.h5", "model/w").back()));
}

// HDF5 likes to keep the second in which an object was made.
TEST(Hdf5Skeleton, IsTheSameBytesWheneverItIsMade) {
  const std::vector<ShardPiece> pieces = {{"model/layers/a", at::kFloat, {2, 3}, {4, 3}, {0, 0}}};
  const std::vector<TensorRecord> tensors = {{"model/layers/a", at::kFloat, {2, 3}, {{0, 2048, {0, 0}, {2, 3}}}}};
  const Hdf5Skeleton shard = make_shard_skeleton(pieces), global = make_global_skeleton(tensors);
  std::this_thread::sleep_for(std::chrono::milliseconds(1100));
  EXPECT_EQ(make_shard_skeleton(pieces).pages, shard.pages);
  EXPECT_EQ(make_global_skeleton(tensors).pages, global.pages);
}

TEST(Hdf5Skeleton, LargeDataSetsStartOnPagesAndTakeNoMemory) {
  std::vector<ShardPiece> pieces;
  for (int i = 0; i < 800; ++i) {
    const int64_t rows = int64_t{1} << (i % 24);
    pieces.push_back({format("model/layers.{}.weight", i), at::kFloat, {rows, 1000}, {rows, 1000}, {0, 0}});
  }
  const Hdf5Skeleton skeleton = make_shard_skeleton(pieces);
  int64_t end = 0;
  for (size_t i = 0; i < pieces.size(); ++i) {
    const int64_t size_bytes = num_elements(pieces[i].size) * 4;
    EXPECT_GE(skeleton.offsets[i], end);
    EXPECT_TRUE(size_bytes < 4096 || skeleton.offsets[i] % 4096 == 0) << i;
    end = skeleton.offsets[i] + size_bytes;
  }
  EXPECT_GT(skeleton.size_bytes, int64_t{1} << 40);  // a terabyte of data
  EXPECT_LT(skeleton.pages.size(), 512u);            // below 2 MiB of structure
}

}  // namespace
}  // namespace temper
