// Files that do not belong to a checkpoint, beside it or in place of its own: of other runs, of other names, made to
// lead an HDF5 reader elsewhere. They are refused or not looked at; nothing outside the folder is ever opened.
#include <gmock/gmock.h>
#include <hdf5.h>

#include <cstdlib>
#include <filesystem>
#include <fstream>

#include "checkpoint/folder.h"
#include "checkpoint/inspect.h"
#include "core/hash.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

using testing::HasSubstr;

// Notes what is opened.
class WatchedFileSystem : public QuickFileSystem {
 public:
  std::vector<std::string> opened;
  int open(const std::string& path, int flags, mode_t mode) override {
    opened.push_back(path);
    return QuickFileSystem::open(path, flags, mode);
  }
};

CheckpointState state_of_run(const std::string& run, int64_t step) {
  CheckpointState state = example_state(step);
  state.header.run = run;
  state.tensors.push_back({"model/large", example_tensor({300, 1000}, at::kFloat, static_cast<int64_t>(run.size()))});
  return state;
}

class Hostile : public testing::Test {
 protected:
  Hostile() {
    set_log_level(LogLevel::kError);
    path_ = CheckpointStore(files_, folder_.path() + "/run", 2).save(state_);
    foreign_ = CheckpointStore(files_, folder_.path() + "/foreign", 2).save(state_of_run("other", 120));
  }
  ~Hostile() override { set_log_level(LogLevel::kInfo); }

  void expect_refused(const std::string& word) {
    const auto tensors = blank_copy(state_.tensors);
    EXPECT_THAT(error_text<FormatError>(
                    [&] { load_checkpoint(files_, path_, [&](const CheckpointHeader&) { return tensors; }); }),
                HasSubstr(word));
    EXPECT_FALSE(verify_checkpoints(files_, path_).good);
  }
  static void replace(const std::string& path, const std::string& with) {
    std::filesystem::copy_file(with, path, std::filesystem::copy_options::overwrite_existing);
  }

  QuickFileSystem files_;
  TemporaryFolder folder_;
  CheckpointState state_ = state_of_run("demo", 120);
  std::string path_, foreign_;  // two runs' checkpoints of one step, whose files have the same names and sizes
};

TEST_F(Hostile, FilesOfAnotherRunAreRefused) {
  for (const char* name : {"shard_00000.h5", "manifest.json"}) {
    const std::string own = path_ + "/" + name;
    std::filesystem::rename(own, folder_.path() + "/own");
    replace(own, foreign_ + "/" + name);
    ASSERT_TRUE(name != std::string("shard_00000.h5") ||
                std::filesystem::file_size(own) == std::filesystem::file_size(folder_.path() + "/own"));
    expect_refused("shard_00000.h5");
    std::filesystem::remove(own);
    std::filesystem::rename(folder_.path() + "/own", own);
    expect_loads_as(files_, path_, state_);
  }
}

TEST_F(Hostile, CutsOfALargeCheckpointAtEvery512BytesAreRefused) {
  for (const FileRecord& file : open_checkpoint_folder(files_, path_).files) {
    const std::string path = path_ + "/" + file.name, whole = folder_.path() + "/whole";
    replace(whole, path);
    const auto tensors = blank_copy(state_.tensors);
    for (int64_t length = (file.size_bytes - 1) / 512 * 512; length >= 0; length -= 512) {
      std::filesystem::resize_file(path, static_cast<uintmax_t>(length));
      EXPECT_THROW(load_checkpoint(files_, path_, [&](const CheckpointHeader&) { return tensors; }), FormatError);
      // Filled up with zeros again, as a file system may do after a crash.
      if (length % (512 * 64) == 0) {
        std::filesystem::resize_file(path, static_cast<uintmax_t>(file.size_bytes));
        EXPECT_THROW(load_checkpoint(files_, path_, [&](const CheckpointHeader&) { return tensors; }), FormatError);
      }
    }
    replace(path, whole);
  }
  expect_loads_as(files_, path_, state_);
}

TEST_F(Hostile, DecoysBesideTheFilesAreNotLookedAt) {
  const std::string run = folder_.path() + "/run";
  for (const char* name :
       {"shard_00001.h5", "shard_0.h5", "manifest.json.tmp-0123456789abcdef", "MANIFEST.JSON", "global.h5~", ".hidden"})
    replace(path_ + "/" + name, foreign_ + "/shard_00000.h5");
  std::filesystem::create_directory(path_ + "/step_000121");
  std::ofstream(run + "/LATEST") << "../foreign/step_000120\n";
  for (const char* name :
       {"step_000130.tmp-0123456789abcdef", "step_130", "step_000130.aside-0", "step_0000130", "step_-00130"})
    std::filesystem::copy(foreign_, run + "/" + name, std::filesystem::copy_options::recursive);
  std::ofstream(run + "/step_000140") << "a file of a checkpoint's name";

  WatchedFileSystem files;
  CheckpointStore store(files, run, 2);
  const auto tensors = blank_copy(state_.tensors);
  const auto loaded = store.load_newest([&](const CheckpointHeader&) { return tensors; });
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->path, path_);
  for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(same_bits(tensors[i].tensor, state_.tensors[i].tensor));
  for (const std::string& path : files.opened)
    EXPECT_THAT(path.substr(path.rfind('/') + 1),
                testing::AnyOf("shard_00000.h5", "global.h5", "manifest.json", "COMMITTED"));
}

TEST_F(Hostile, AWholeFolderUnderAnotherStepIsPassedOver) {
  const std::string run = folder_.path() + "/run";
  std::filesystem::copy(foreign_, run + "/step_000999", std::filesystem::copy_options::recursive);
  std::filesystem::create_directory(run + "/step_001000");  // and an empty one
  const auto tensors = blank_copy(state_.tensors);
  const auto loaded = CheckpointStore(files_, run, 2).load_newest([&](const CheckpointHeader&) { return tensors; });
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->header.run, "demo");
}

TEST_F(Hostile, WhatHdf5LooksForInTheWorkingFolderAndTheEnvironmentIsNotLookedFor) {
  const std::filesystem::path before = std::filesystem::current_path();
  const char* names[] = {"HDF5_VDS_PREFIX", "HDF5_EXTFILE_PREFIX", "HDF5_PLUGIN_PATH"};
  for (const char* name : names) ::setenv(name, foreign_.c_str(), 1);
  std::filesystem::current_path(foreign_);
  expect_loads_as(files_, path_, state_);
  std::filesystem::current_path(before);
  for (const char* name : names) ::unsetenv(name);
}

// A file that leads an HDF5 reader out of the folder or into its own code.
enum class Trap { kExternalLink, kExternalStorage, kFilter, kLinkUpwards, kLoop };

void make_trap(Trap trap, const std::string& path, const std::string& target) {
  const hid_t file = H5Fcreate(path.c_str(), H5F_ACC_TRUNC, H5P_DEFAULT, H5P_DEFAULT);
  ASSERT_GE(file, 0);
  const hsize_t size = 300000;
  const hid_t space = H5Screate_simple(1, &size, nullptr);
  const hid_t creation = H5Pcreate(H5P_DATASET_CREATE);
  const hid_t group = H5Gcreate2(file, "model", H5P_DEFAULT, H5P_DEFAULT, H5P_DEFAULT);
  if (trap == Trap::kExternalLink)
    H5Lcreate_external(target.c_str(), "/model/large", group, "large", H5P_DEFAULT, H5P_DEFAULT);
  if (trap == Trap::kLinkUpwards)
    H5Lcreate_external("../../secret.h5", "/../..", group, "large", H5P_DEFAULT, H5P_DEFAULT);
  if (trap == Trap::kLoop) H5Lcreate_hard(file, "/", group, "large", H5P_DEFAULT, H5P_DEFAULT);
  if (trap == Trap::kExternalStorage) H5Pset_external(creation, target.c_str(), 0, size * 4);
  if (trap == Trap::kFilter) {
    const hsize_t chunk = 1000;
    H5Pset_chunk(creation, 1, &chunk);
    H5Pset_shuffle(creation);
    H5Pset_fletcher32(creation);
  }
  if (trap == Trap::kExternalStorage || trap == Trap::kFilter) {
    const hid_t data = H5Dcreate2(group, "large", H5T_IEEE_F32LE, space, H5P_DEFAULT, creation, H5P_DEFAULT);
    ASSERT_GE(data, 0);
    H5Dclose(data);
  }
  H5Gclose(group);
  H5Pclose(creation);
  H5Sclose(space);
  H5Fclose(file);
}

TEST_F(Hostile, Hdf5FilesThatLeadElsewhereAreRefused) {
  for (const Trap trap : {Trap::kExternalLink, Trap::kExternalStorage, Trap::kFilter, Trap::kLinkUpwards, Trap::kLoop})
    for (const char* name : {"shard_00000.h5", "global.h5"}) {
      const std::string own = path_ + "/" + name;
      const auto size_bytes = std::filesystem::file_size(own);
      std::filesystem::rename(own, folder_.path() + "/own");
      make_trap(trap, own, foreign_ + "/shard_00000.h5");
      expect_refused(name);
      std::filesystem::resize_file(own, size_bytes);  // of the right size, it is its bytes that give it away
      expect_refused(name);
      std::filesystem::rename(folder_.path() + "/own", own);
    }
  expect_loads_as(files_, path_, state_);
}

// XXH3 is no signature: whoever can write the manifest can give such a file the right checksums. Then its bytes are
// read as the manifest says, as bytes; HDF5 is not asked, no link followed.
TEST_F(Hostile, UnderAForgedManifestNothingOutsideTheFolderIsOpened) {
  Manifest manifest = open_checkpoint_folder(files_, path_);
  const std::string own = path_ + "/shard_00000.h5";
  for (const Trap trap :
       {Trap::kExternalLink, Trap::kExternalStorage, Trap::kFilter, Trap::kLinkUpwards, Trap::kLoop}) {
    const auto size_bytes = std::filesystem::file_size(own);
    std::filesystem::remove(own);
    make_trap(trap, own, foreign_ + "/shard_00000.h5");
    std::filesystem::resize_file(own, size_bytes);
    const std::string bytes = read_whole_file(files_, own, 1 << 30);
    manifest.files[0].xxh3_128 = xxh3_128_hex(bytes);
    for (size_t i = 0; i < manifest.files[0].blocks.size(); ++i) {
      const size_t begin = i * static_cast<size_t>(kBlockBytes);
      manifest.files[0].blocks[i] = xxh3_64(bytes.substr(begin, static_cast<size_t>(kBlockBytes)));
    }
    std::filesystem::remove(path_ + "/manifest.json");
    write_synced_file(files_, path_ + "/manifest.json", encode_manifest(manifest));

    WatchedFileSystem files;
    const auto tensors = blank_copy(state_.tensors);
    load_checkpoint(files, path_, [&](const CheckpointHeader&) { return tensors; });
    const auto& large = manifest.tensors.back();
    ASSERT_EQ(large.name, "model/large");
    EXPECT_EQ(std::memcmp(tensors.back().tensor.const_data_ptr(), bytes.data() + large.boxes[0].offset,
                          tensors.back().tensor.nbytes()),
              0);
    for (const std::string& path : files.opened) EXPECT_EQ(parent_folder(path), path_);
  }
}

}  // namespace
}  // namespace temper
