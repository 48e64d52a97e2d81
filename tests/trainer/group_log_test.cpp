#include "trainer/group_log.h"

#include <gtest/gtest.h>
#include <sys/resource.h>
#include <unistd.h>

#include <csignal>
#include <filesystem>

#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

LoggedGroup group_of(int64_t serial, PolicyVersion version) {
  LoggedGroup group{1, serial, 7, {}};
  Completion completion;
  completion.token_ids = {3};
  completion.logprobs = completion.behavior_logprobs = {-1};
  completion.policy_versions = {version};
  completion.mask = {1};
  group.completions = std::vector{completion};
  return group;
}

std::vector<int64_t> serials(const std::vector<LoggedGroup>& groups) {
  std::vector<int64_t> found;
  for (const LoggedGroup& group : groups) found.push_back(group.serial);
  return found;
}

class GroupLogTest : public testing::Test {
 protected:
  void SetUp() override { std::filesystem::remove(path_); }
  void TearDown() override { std::filesystem::remove(path_); }
  std::string path_ = testing::TempDir() + format("groups_{}.log", ::getpid());
};

TEST_F(GroupLogTest, GroupsNotNewerThanTheCheckpointComeBack) {
  {
    GroupLog log(path_, 0, 1, 0);
    EXPECT_EQ(log.epoch(), 1);
    log.append(group_of(4, 2));
    log.append(group_of(5, 3));
    EXPECT_EQ(log.flush(), 0);
    log.sync_if_due(1);
  }
  GroupLog again(path_, 2, 1, 0);
  EXPECT_EQ(again.epoch(), 2);
  const auto replay = again.take_replay();
  EXPECT_EQ(serials(replay), std::vector<int64_t>{4});
  EXPECT_EQ(replay[0].completions.unpack()[0].policy_versions, std::vector<PolicyVersion>{2});
}

TEST_F(GroupLogTest, AnUndoneHistoryStaysUndone) {
  // Version 3 of the first start was undone by the second, which began again at 2 and has a version 3 of its own.
  const std::string bytes =
      start_record(1, 0) + group_record(group_of(1, 3)) + start_record(2, 2) + group_record(group_of(2, 3));
  EXPECT_EQ(serials(read_group_log(bytes, 3).groups), std::vector<int64_t>{2});
}

TEST_F(GroupLogTest, ATornTailIsCutOffAtEveryByte) {
  const std::string whole = start_record(1, 0) + group_record(group_of(1, 0)), last = group_record(group_of(2, 0));
  for (size_t size = 0; size < last.size(); ++size) {
    const LogContents contents = read_group_log(whole + last.substr(0, size), 0);
    EXPECT_EQ(serials(contents.groups), std::vector<int64_t>{1});
    EXPECT_EQ(contents.valid_bytes, whole.size());
  }
  write_file_atomically(path_, whole + last.substr(0, last.size() - 1));
  GroupLog log(path_, 0, 1, 0);
  log.append(group_of(3, 0));
  EXPECT_EQ(log.flush(), 0);
  EXPECT_EQ(serials(read_group_log(read_file(path_), 0).groups), (std::vector<int64_t>{1, 3}));
}

TEST_F(GroupLogTest, ACheckpointKeepsWhatIsStillNeeded) {
  GroupLog log(path_, 0, 10, 0);
  EXPECT_EQ(log.epoch(), 10);
  const auto kept = [&] { return serials(read_group_log(read_file(path_), 1).groups); };
  for (int64_t serial = 0; serial < 6; ++serial) log.append(group_of(serial, 1));
  EXPECT_EQ(log.flush(), 0);
  LogTrim trim(log, [](int64_t serial) { return serial >= 4; });
  log.append(group_of(6, 1));  // while the new file is written
  trim.write();
  EXPECT_EQ(log.flush(), 0);
  log.append(group_of(7, 1));
  EXPECT_EQ(kept(), (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6}));
  log.adopt(std::move(trim));
  EXPECT_EQ(kept(), (std::vector<int64_t>{4, 5, 6, 7}));
  log.append(group_of(8, 1));
  EXPECT_EQ(log.flush(), 0);
  EXPECT_EQ(kept(), (std::vector<int64_t>{4, 5, 6, 7, 8}));
  EXPECT_EQ(read_group_log(read_file(path_), 1).last_epoch, 10);
  LogTrim again(log, [](int64_t serial) { return serial == 6 || serial == 8; });
  again.write();
  log.adopt(std::move(again));
  EXPECT_EQ(kept(), (std::vector<int64_t>{6, 8}));
}

TEST_F(GroupLogTest, GroupsThatAFullDiskRefusesAreCountedAndTheFileStaysWhole) {
  GroupLog log(path_, 0, 1, 0);
  log.append(group_of(1, 1));
  EXPECT_EQ(log.flush(), 0);
  const std::string before = read_file(path_);
  rlimit old{};
  ASSERT_EQ(getrlimit(RLIMIT_FSIZE, &old), 0);
  const auto handler = std::signal(SIGXFSZ, SIG_IGN);
  const rlimit full{before.size() + 10, old.rlim_max};
  ASSERT_EQ(setrlimit(RLIMIT_FSIZE, &full), 0);
  log.append(group_of(2, 1));
  log.append(group_of(3, 1));
  const int64_t lost = log.flush();
  setrlimit(RLIMIT_FSIZE, &old);
  std::signal(SIGXFSZ, handler);
  EXPECT_EQ(lost, 2);
  EXPECT_EQ(read_file(path_), before);
  log.append(group_of(4, 1));
  EXPECT_EQ(log.flush(), 0);
  EXPECT_EQ(serials(read_group_log(read_file(path_), 1).groups), (std::vector<int64_t>{1, 4}));
}

TEST_F(GroupLogTest, AnotherKindOfFileIsLeftAlone) {
  write_file_atomically(path_, std::string(100, 'x'));
  EXPECT_THROW(GroupLog(path_, 0, 1, 0), FormatError);
  EXPECT_EQ(read_file(path_), std::string(100, 'x'));
}

}  // namespace
}  // namespace temper
