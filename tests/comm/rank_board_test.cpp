#include "comm/rank_board.h"

#include <gmock/gmock.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>
#include <thread>

namespace temper {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;
using ::testing::Not;

class RankBoardTest : public ::testing::Test {
 protected:
  RankBoardTest() {
    char name[] = "/tmp/rank_board_XXXXXX";
    folder_ = mkdtemp(name);
  }
  ~RankBoardTest() override { std::filesystem::remove_all(folder_); }

  static std::shared_ptr<CommOperation> operation(int64_t sequence, const std::string& name) {
    auto made = std::make_shared<CommOperation>();
    made->sequence = sequence;
    made->name = name;
    made->started = std::chrono::steady_clock::now();
    return made;
  }
  std::string folder_;
};

TEST_F(RankBoardTest, NamesTheRanksThatHaveNotBegunAndWhatTheyDidLast) {
  RankBoard first(folder_, 0, 3, {}), second(folder_, 1, 3, {});
  EXPECT_THAT(first.describe_missing(0), AllOf(HasSubstr("rank 0"), HasSubstr("rank 2 (which has begun nothing yet)")));
  first.begun(operation(4, "gradients of block 3"));
  second.begun(operation(3, "metrics"));
  EXPECT_THAT(
      first.describe_missing(4),
      AllOf(Not(HasSubstr("rank 0")), HasSubstr("rank 1 (last: \"metrics\", operation 3"), HasSubstr("rank 2")));
  RankBoard third(folder_, 2, 3, {});
  second.begun(operation(4, "gradients of block 3"));
  third.begun(operation(5, "count"));
  EXPECT_EQ(first.describe_missing(4), "");
}

TEST_F(RankBoardTest, SaysWhetherAProcessIsStoppedOrGone) {
  RankBoard board(folder_, 0, 2, {});
  board.begun(operation(7, "here"));
  const pid_t child = fork();
  if (child == 0) {
    RankBoard mine(folder_, 1, 2, {});
    mine.begun(operation(6, "before"));
    raise(SIGSTOP);
    _exit(0);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  EXPECT_THAT(board.describe_missing(7), AllOf(HasSubstr("rank 1"), HasSubstr("its process is stopped")));
  EXPECT_THAT(board.describe_missing(6), HasSubstr("its process is stopped"));  // it has begun that one
  kill(child, SIGKILL);
  waitpid(child, &status, 0);
  EXPECT_THAT(board.describe_missing(7), HasSubstr("its process is gone"));
}

TEST_F(RankBoardTest, TheFirstRankReportsWhatTakesLong) {
  ::testing::internal::CaptureStderr();
  {
    RankBoard board(folder_, 0, 2, std::chrono::milliseconds(50));
    const auto late = operation(3, "groups");
    board.begun(late);
    std::this_thread::sleep_for(std::chrono::milliseconds(400));
    late->finish();
  }
  const std::string said = ::testing::internal::GetCapturedStderr();
  EXPECT_THAT(said, AllOf(HasSubstr("\"groups\" (operation 3"), HasSubstr("held up by rank 1")));
  EXPECT_EQ(said.find("\"groups\""), said.rfind("\"groups\""));  // once
}

}  // namespace
}  // namespace temper
