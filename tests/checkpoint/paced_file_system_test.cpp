#include "checkpoint/paced_file_system.h"

#include <fcntl.h>
#include <gtest/gtest.h>

#include <thread>

#include "core/clock.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

constexpr size_t kPieceBytes = 10'000;

class PacedFileSystemTest : public testing::Test {
 protected:
  // Seconds for that many pieces.
  double write(PacedFileSystem& files, int count) {
    File file = File::create(files, folder_.path() + "/" + std::to_string(next_++));
    const std::string piece(kPieceBytes, 'x');
    const Stopwatch watch;
    for (int i = 0; i < count; ++i) file.write_at(static_cast<int64_t>(i * kPieceBytes), piece.data(), piece.size());
    return watch.seconds();
  }
  TemporaryFolder folder_;
  int next_ = 0;
};

TEST_F(PacedFileSystemTest, WritesNoFasterThanAllowed) {
  PacedFileSystem files(static_cast<int64_t>(kPieceBytes) * 100);  // a piece each 10 ms
  EXPECT_GE(write(files, 11), 0.099);                              // the first begins at once
}

TEST_F(PacedFileSystemTest, IsHeldUpNoLongerOnceSomebodyWaits) {
  PacedFileSystem files(1);  // a piece takes three hours
  write(files, 1);
  std::thread background([&] { write(files, 5); });
  const PacedFileSystem::Hurry now(files);
  background.join();
  write(files, 5);
}

TEST_F(PacedFileSystemTest, WithoutALimitOnlyPassesOn) {
  PacedFileSystem files;
  write(files, 3);
  EXPECT_EQ(read_whole_file(files, folder_.path() + "/0", 1 << 20).size(), 3 * kPieceBytes);
}

}  // namespace
}  // namespace temper
