#include "checkpoint/file_system.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

TEST(File, ShortTransfersAndInterruptionsAreFinished) {
  const std::string text = "a text of thirty-one characters";
  for (Fault fault : {Fault::kShort, Fault::kInterrupted})
    for (int64_t at = 0; at < 12; ++at) {
      TemporaryFolder folder;
      FaultFileSystem files;
      files.fault = fault;
      files.fault_at = at;
      write_synced_file(files, folder.path() + "/f", text);
      EXPECT_EQ(read_whole_file(files, folder.path() + "/f", 100), text) << at;
      EXPECT_EQ(files.fired, at < files.calls);
    }
}

TEST(File, FailuresNamePathReasonAndFix) {
  TemporaryFolder folder;
  FaultFileSystem files;
  const std::string path = folder.path() + "/f";
  const auto failing = [&](const std::string& call, int error) {
    std::filesystem::remove(path);
    files.only = call;
    files.calls = 0;
    files.fault = Fault::kError;
    files.fault_at = 0;
    files.error = error;
    return error_text<IoError>([&] { write_synced_file(files, path, "text"); });
  };
  EXPECT_THAT(failing("open", EACCES),
              AllOf(HasSubstr(path), HasSubstr("Permission denied"), HasSubstr("owner and permissions")));
  EXPECT_THAT(failing("reserve", ENOSPC),
              AllOf(HasSubstr(path), HasSubstr("4 bytes cannot be reserved"), HasSubstr("--checkpoint.keep_local")));
  EXPECT_THAT(failing("pwrite", EIO), AllOf(HasSubstr(path), HasSubstr("Input/output error"), HasSubstr("dmesg")));
  EXPECT_THAT(failing("fsync", EIO), AllOf(HasSubstr(path), HasSubstr("fsync failed")));
  EXPECT_THAT(failing("close", EDQUOT), AllOf(HasSubstr(path), HasSubstr("closing failed")));
}

TEST(File, WhereSpaceCannotBeReservedTheFileIsExtended) {
  TemporaryFolder folder;
  FaultFileSystem files;
  files.fault = Fault::kError;
  files.only = "reserve";
  files.fault_at = 0;
  files.error = EOPNOTSUPP;
  File file = File::create(files, folder.path() + "/f");
  file.reserve(12345);
  EXPECT_EQ(file.size_bytes(), 12345);
}

TEST(File, AFullDiskShowsBeforeTheFirstByte) {
  TemporaryFolder folder;
  FileSystem files;
  File file = File::create(files, folder.path() + "/f");
  const std::string text = error_text<IoError>([&] { file.reserve(int64_t{1} << 50); });
  EXPECT_THAT(text, AllOf(HasSubstr("1125899906842624 bytes cannot be reserved"), HasSubstr("bytes are free")));
}

TEST(File, OnlyRegularFilesAreRead) {
  TemporaryFolder folder;
  FileSystem files;
  std::ofstream(folder.path() + "/real") << "x";
  std::filesystem::create_symlink(folder.path() + "/real", folder.path() + "/link");
  ASSERT_EQ(::mkfifo((folder.path() + "/pipe").c_str(), 0600), 0);
  EXPECT_THAT(error_text<IoError>([&] { File::open(files, folder.path() + "/link"); }),
              HasSubstr("not a symbolic link"));
  EXPECT_THAT(error_text<IoError>([&] { File::open(files, folder.path() + "/pipe"); }),
              HasSubstr("not a regular file"));
  EXPECT_THAT(error_text<IoError>([&] { File::open(files, folder.path()); }), HasSubstr("not a regular file"));
  EXPECT_THAT(error_text<FormatError>([&] { read_whole_file(files, folder.path() + "/real", 0); }),
              HasSubstr("has 1 bytes, at most 0"));
}

TEST(File, AnExistingFileIsNotOverwritten) {
  TemporaryFolder folder;
  FileSystem files;
  write_synced_file(files, folder.path() + "/f", "old");
  EXPECT_THAT(error_text<IoError>([&] { write_synced_file(files, folder.path() + "/f", "new"); }),
              HasSubstr("File exists"));
  EXPECT_EQ(read_whole_file(files, folder.path() + "/f", 10), "old");
}

TEST(Folders, AreMadeListedAndRemovedWithTheirContents) {
  TemporaryFolder folder;
  FileSystem files;
  make_folders(files, folder.path() + "/a/b//c/");
  write_synced_file(files, folder.path() + "/a/b/f", "x");
  std::filesystem::create_directory(folder.path() + "/kept");
  write_synced_file(files, folder.path() + "/kept/f", "x");
  std::filesystem::create_directory_symlink(folder.path() + "/kept", folder.path() + "/a/link");
  EXPECT_THAT(list_folder(files, folder.path() + "/a/b"), ElementsAre("c", "f"));
  EXPECT_TRUE(list_folder(files, folder.path() + "/none").empty());
  remove_tree(files, folder.path() + "/a");
  EXPECT_FALSE(is_folder(folder.path() + "/a"));
  EXPECT_THAT(list_folder(files, folder.path() + "/kept"), ElementsAre("f"));  // the link went, not what it named
  EXPECT_THAT(error_text<IoError>([&] { make_folders(files, folder.path() + "/kept/f"); }),
              HasSubstr("a file has that name"));
}

TEST(Paths, ParentsAndLastNames) {
  EXPECT_EQ(parent_folder("/a/b/"), "/a");
  EXPECT_EQ(parent_folder("/a"), "/");
  EXPECT_EQ(parent_folder("a//b"), "a");
  EXPECT_EQ(parent_folder("a"), ".");
  EXPECT_EQ(base_name("/a/b/"), "b");
  EXPECT_EQ(base_name("b"), "b");
  EXPECT_EQ(base_name("/"), "/");
}

}  // namespace
}  // namespace temper
