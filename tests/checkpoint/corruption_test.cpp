// Whatever happens to the bytes or names of a checkpoint, it is refused: each bit of each file, each cut, zeroed pages,
// swapped and stale files.
#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/folder.h"
#include "checkpoint/inspect.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class Corruption : public testing::Test {
 protected:
  Corruption() {
    QuickFileSystem files;
    path_ = CheckpointStore(files, folder_.path(), 2).save(state_);
  }
  void load(FileSystem& files) const {
    load_checkpoint(files, path_, [&](const CheckpointHeader&) { return tensors_; });
  }
  std::string file(const std::string& name) const { return path_ + "/" + name; }

  TemporaryFolder folder_;
  CheckpointState state_ = example_state(120);
  std::vector<TensorEntry> tensors_ = blank_copy(state_.tensors);
  std::string path_;
};

// Two shards of equal size and layout: only contents tell them apart.
std::string write_two_shards(const std::string& folder, int64_t step) {
  QuickFileSystem files;
  const at::Tensor whole = example_tensor({4, 3}, at::kFloat, step);
  const TensorRecord record{"model/w", at::kFloat, {4, 3}, {{0, 0, {0, 0}, {2, 3}}, {1, 0, {2, 0}, {2, 3}}}};
  CheckpointHeader header = example_state(step).header;
  const char* data = static_cast<const char*>(whole.const_data_ptr());
  const std::string path = folder + "/" + step_name(step);
  write_checkpoint_folder(files, path, header, Mesh{1, 2, 1}, {record}, {{data, data + 24}}, 2);
  return path;
}

void load_two_shards(const std::string& path) {
  QuickFileSystem files;
  load_checkpoint(files, path, [](const CheckpointHeader&) {
    return std::vector<TensorEntry>{{"model/w", at::zeros({4, 3})}};
  });
}

TEST_F(Corruption, EveryFlippedBitOfEveryFileIsDetected) {
  ChangedFileSystem files;
  int64_t flips = 0;
  for (const char* name : {"shard_00000.h5", "global.h5", "manifest.json"}) {
    files.name = name;
    const auto bits = static_cast<int64_t>(std::filesystem::file_size(file(name))) * 8;
    for (int64_t bit = 0; bit < bits; ++bit, ++flips) {
      files.change = [&](char* bytes, int64_t offset, int64_t size_bytes) {
        if (bit / 8 >= offset && bit / 8 < offset + size_bytes)
          bytes[bit / 8 - offset] = static_cast<char>(bytes[bit / 8 - offset] ^ (1 << (bit % 8)));
      };
      EXPECT_THROW(load(files), FormatError) << name << " bit " << bit;
    }
  }
  EXPECT_GT(flips, 60000);
  files.name = "";
  load(files);  // unharmed, it loads
}

TEST_F(Corruption, EveryFlippedBitOfEveryNameIsDetected) {
  QuickFileSystem files;
  for (const char* name : {"shard_00000.h5", "global.h5", "manifest.json", "COMMITTED"})
    for (size_t bit = 0; bit < std::string(name).size() * 8; ++bit) {
      std::string other = name;
      other[bit / 8] = static_cast<char>(other[bit / 8] ^ (1 << (bit % 8)));
      if (other.find('/') != std::string::npos || other.find('\0') != std::string::npos)
        continue;  // no name can be that
      std::filesystem::rename(file(name), file(other));
      EXPECT_THROW(load(files), FormatError) << other;
      std::filesystem::rename(file(other), file(name));
    }
  std::filesystem::rename(path_, folder_.path() + "/step_000121");
  path_ = folder_.path() + "/step_000121";
  EXPECT_THAT(error_text<FormatError>([&] { load(files); }),
              HasSubstr("holds step 120, so its name should be step_000120"));
}

TEST_F(Corruption, EveryCutOfEveryFileIsDetected) {
  QuickFileSystem files;
  for (const char* name : {"shard_00000.h5", "global.h5", "manifest.json"}) {
    const std::string copy = folder_.path() + "/copy";
    std::filesystem::copy_file(file(name), copy, std::filesystem::copy_options::overwrite_existing);
    for (auto length = static_cast<int64_t>(std::filesystem::file_size(copy)) - 1; length >= 0; --length) {
      std::filesystem::resize_file(file(name), static_cast<uintmax_t>(length));
      EXPECT_THROW(load(files), FormatError) << name << " length " << length;
    }
    std::filesystem::copy_file(copy, file(name), std::filesystem::copy_options::overwrite_existing);
    load(files);
    std::ofstream(file(name), std::ios::app) << '\0';
    EXPECT_THROW(load(files), FormatError) << name << " longer";
    std::filesystem::copy_file(copy, file(name), std::filesystem::copy_options::overwrite_existing);
  }
}

TEST_F(Corruption, ZeroedPagesAreDetected) {
  ChangedFileSystem files;
  for (const char* name : {"shard_00000.h5", "global.h5", "manifest.json"}) {
    files.name = name;
    const auto size = static_cast<int64_t>(std::filesystem::file_size(file(name)));
    for (int64_t page = 0; page * 512 < size; ++page) {
      bool changed = false;
      files.change = [&](char* bytes, int64_t offset, int64_t size_bytes) {
        for (int64_t i = std::max(offset, page * 512); i < std::min(offset + size_bytes, page * 512 + 512); ++i) {
          changed = changed || bytes[i - offset] != 0;
          bytes[i - offset] = 0;
        }
      };
      try {
        load(files);
        EXPECT_FALSE(changed) << name << " page " << page;  // zeros were there before
      } catch (const FormatError&) {
        EXPECT_TRUE(changed);
      }
    }
  }
}

TEST_F(Corruption, SwappedAndStaleShardsAreDetected) {
  const std::string path = write_two_shards(folder_.path(), 7);
  load_two_shards(path);
  std::filesystem::rename(path + "/shard_00000.h5", path + "/x");
  std::filesystem::rename(path + "/shard_00001.h5", path + "/shard_00000.h5");
  std::filesystem::rename(path + "/x", path + "/shard_00001.h5");
  EXPECT_THAT(error_text<FormatError>([&] { load_two_shards(path); }), HasSubstr("shard_00000.h5, block 0"));

  const std::string older = write_two_shards(folder_.path(), 8);
  const std::string newer = write_two_shards(folder_.path(), 9);
  std::filesystem::copy_file(older + "/shard_00001.h5", newer + "/shard_00001.h5",
                             std::filesystem::copy_options::overwrite_existing);
  EXPECT_THAT(error_text<FormatError>([&] { load_two_shards(newer); }), HasSubstr("shard_00001.h5, block 0"));
}

TEST_F(Corruption, MissingFilesAreNamed) {
  for (const char* name : {"COMMITTED", "manifest.json", "shard_00000.h5", "global.h5"}) {
    QuickFileSystem files;
    std::filesystem::rename(file(name), folder_.path() + "/x");
    EXPECT_THAT(error_text<FormatError>([&] { load(files); }), HasSubstr(format("{} is missing", name)));
    std::filesystem::rename(folder_.path() + "/x", file(name));
  }
  QuickFileSystem files;
  std::ofstream(file("COMMITTED")) << "x";
  EXPECT_THAT(error_text<FormatError>([&] { load(files); }), HasSubstr("COMMITTED is not empty"));
}

TEST_F(Corruption, ASymbolicLinkInPlaceOfAFileIsRefused) {
  QuickFileSystem files;
  std::filesystem::rename(file("shard_00000.h5"), folder_.path() + "/elsewhere.h5");
  std::filesystem::create_symlink(folder_.path() + "/elsewhere.h5", file("shard_00000.h5"));
  EXPECT_THAT(error_text<IoError>([&] { load(files); }), HasSubstr("not a symbolic link"));
}

TEST_F(Corruption, VerifySaysWhichFileAndBlock) {
  QuickFileSystem files;
  CheckpointState large = example_state(130);
  large.tensors.push_back({"model/large", at::arange(700000, at::kFloat)});  // 2.8 MB: blocks 0, 1, 2
  const std::string path = CheckpointStore(files, folder_.path(), 2).save(large);
  for (int64_t position : {int64_t{1500000}, int64_t{2500000}}) {
    std::fstream out(path + "/shard_00000.h5", std::ios::in | std::ios::out | std::ios::binary);
    out.seekp(position);
    out.put('!');
  }
  const VerifyReport report = verify_checkpoints(files, folder_.path());
  EXPECT_FALSE(report.good);
  EXPECT_THAT(
      report.text,
      AllOf(HasSubstr("step_000130: CORRUPT, 2 problems"),
            HasSubstr("shard_00000.h5, block 1 (bytes 1048576 and following): its bytes do not give"),
            HasSubstr("shard_00000.h5, block 2 (bytes 2097152 and following)"), HasSubstr("step_000120: whole, ")));
  EXPECT_TRUE(verify_checkpoints(files, path_).good);
}

}  // namespace
}  // namespace temper
