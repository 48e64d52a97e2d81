#include "observe/tensorboard.h"

#include <gtest/gtest.h>

#include <cmath>
#include <cstring>
#include <filesystem>
#include <limits>
#include <set>

#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

std::string event_folder() {
  const std::string folder =
      testing::TempDir() + "tensorboard_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove_all(folder);
  return folder;
}

uint64_t take(std::string_view& bytes, size_t size) {
  uint64_t value = 0;
  std::memcpy(&value, bytes.data(), size);
  bytes.remove_prefix(size);
  return value;
}

// The data of every record; both checksums of each must hold.
std::vector<std::string> records_of(const std::string& path) {
  const std::string file = read_file(path);
  std::string_view rest = file;
  std::vector<std::string> records;
  while (!rest.empty()) {
    const std::string_view length_bytes = rest.substr(0, 8);
    const size_t length = take(rest, 8);
    EXPECT_EQ(take(rest, 4), masked_crc32c(length_bytes));
    records.emplace_back(rest.substr(0, length));
    rest.remove_prefix(length);
    EXPECT_EQ(take(rest, 4), masked_crc32c(records.back()));
  }
  return records;
}

// RFC 3720, appendix B.4.
TEST(Crc32c, MatchesThePublishedKnownAnswers) {
  EXPECT_EQ(crc32c("123456789"), 0xe3069283u);
  EXPECT_EQ(crc32c(std::string(32, '\0')), 0x8a9136aau);
  EXPECT_EQ(crc32c(std::string(32, '\xff')), 0x62a8ab43u);
  std::string ascending;
  for (int i = 0; i < 32; ++i) ascending += static_cast<char>(i);
  EXPECT_EQ(crc32c(ascending), 0x46dd794eu);
}

TEST(TensorBoardWriter, BeginsWithTheVersionAndWritesOneEventAStep) {
  TensorBoardWriter writer(event_folder());
  writer.write({"grpo", 2, 2, 1.5, {{"reward", 0.5}, {"bad", std::numeric_limits<double>::quiet_NaN()}}}, 300);
  const auto records = records_of(writer.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[0].substr(9),
            "\x1a\x0d"
            "brain.Event:2");
  // wall_time 1.5, step 300 (varint ac 02), summary of 20 bytes { value of 18 { tag of 11, simple_value 0.5f } }
  const char expected[] =
      "\x09\x00\x00\x00\x00\x00\x00\xf8\x3f"
      "\x10\xac\x02"
      "\x2a\x14"
      "\x0a\x12"
      "\x0a\x0b"
      "grpo/reward"
      "\x15\x00\x00\x00\x3f";
  EXPECT_EQ(records[1], std::string(expected, sizeof expected - 1));
}

TEST(TensorBoardWriter, AResumedRunOpensALaterFileThatPurgesWhatIsWrittenAgain) {
  const std::string folder = event_folder();
  TensorBoardWriter first(folder);
  TensorBoardWriter second(folder, 7);
  EXPECT_LT(first.path(), second.path());
  const auto records = records_of(second.path());
  ASSERT_EQ(records.size(), 2u);
  EXPECT_EQ(records[1].substr(9), std::string("\x10\x07\x3a\x02\x08\x01"));  // step 7, session log {status START}
}

TEST(TensorBoardWriter, AnUnwritableFolderIsAnErrorThatNamesTheFix) {
  const std::string folder = event_folder();
  write_file_atomically(folder, "a file");
  try {
    TensorBoardWriter writer(folder + "/tb");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_NE(std::string(error.what()).find(folder), std::string::npos);
  }
}

}  // namespace
}  // namespace temper
