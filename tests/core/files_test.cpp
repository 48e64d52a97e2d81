#include "core/files.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <stdlib.h>
#include <unistd.h>

#include <filesystem>
#include <optional>

#include "core/error.h"
#include "core/process.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string fresh_folder() {
  const std::string folder =
      testing::TempDir() + "files_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

TEST(FileLock, ASecondHolderIsToldWhoTheFirstIs) {
  const std::string path = fresh_folder() + "/lock";
  EXPECT_FALSE(is_locked(path));
  std::optional<FileLock> first(path);
  EXPECT_TRUE(is_locked(path));
  try {
    const FileLock second(path);
    FAIL() << "two hold one lock";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr(format("in use by host {} pid {}", host_name(), getpid())),
                                    HasSubstr("choose another --run.name")));
  }
  first.reset();
  EXPECT_FALSE(is_locked(path));
  const FileLock third(path);
}

TEST(FileLock, NamesTheSlurmJobThatHoldsIt) {
  const std::string path = fresh_folder() + "/lock";
  setenv("SLURM_JOB_ID", "4711", /*overwrite=*/1);
  const FileLock first(path);
  unsetenv("SLURM_JOB_ID");
  try {
    const FileLock second(path);
    FAIL() << "two hold one lock";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("of Slurm job 4711. Wait for it"));
  }
}

TEST(ReplaceFile, ReplacesAsAWholeAndLeavesNothingElse) {
  const std::string folder = fresh_folder();
  EXPECT_TRUE(replace_file(folder + "/a", "one"));
  EXPECT_TRUE(replace_file(folder + "/a", "two"));
  EXPECT_EQ(read_file(folder + "/a"), "two");
  EXPECT_EQ(std::distance(std::filesystem::directory_iterator(folder), {}), 1);
  EXPECT_FALSE(replace_file(folder + "/none/a", "three"));
}

}  // namespace
}  // namespace temper
