#include "core/child_process.h"

#include <gtest/gtest.h>

#include <chrono>
#include <csignal>
#include <cstdlib>
#include <thread>

#include "core/error.h"

namespace temper {
namespace {

using Result = ChildProcess::Result;

ChildProcess::Deadline in(int milliseconds) {
  return std::chrono::steady_clock::now() + std::chrono::milliseconds(milliseconds);
}

constexpr int kLong = 60'000;

TEST(ChildProcess, AnswersLineByLine) {
  ChildProcess cat({"cat"});
  for (const std::string text : {"one", "", "three, longer"}) {
    std::string line;
    ASSERT_EQ(cat.write(text + "\n", in(kLong)), Result::kDone);
    ASSERT_EQ(cat.read_line(line, in(kLong), 100), Result::kDone);
    EXPECT_EQ(line, text);
  }
  cat.close_input();
  std::string line;
  EXPECT_EQ(cat.read_line(line, in(kLong), 100), Result::kClosed);
  EXPECT_EQ(cat.wait(in(kLong)), 0);
}

TEST(ChildProcess, KeepsLinesThatCameTogether) {
  ChildProcess both({"printf", "a\\nb\\n"});
  std::string first, second;
  EXPECT_EQ(both.read_line(first, in(kLong), 100), Result::kDone);
  EXPECT_EQ(both.read_line(second, in(kLong), 100), Result::kDone);
  EXPECT_EQ(first + second, "ab");
}

TEST(ChildProcess, CollectsBothOutputsAndTheExitCode) {
  ChildProcess process({"sh", "-c", "cat; echo trouble >&2; exit 3"}, ChildProcess::Errors::kCapture);
  const std::string much(300'000,
                         'x');  // more than a pipe holds, so that one end must be read before the other is done
  std::thread writer([&] {
    EXPECT_EQ(process.write(much, in(kLong)), Result::kDone);
    process.close_input();
  });
  std::string output, errors;
  EXPECT_EQ(process.read_all(output, errors, in(kLong), 1 << 20), Result::kDone);
  writer.join();
  EXPECT_EQ(output, much);
  EXPECT_EQ(errors, "trouble\n");
  EXPECT_EQ(process.wait(in(kLong)), 3);
}

TEST(ChildProcess, GivesUpAtTheDeadlineAndEndsAllThatItStarted) {
  std::string pid;
  {
    ChildProcess process({"sh", "-c", "sleep 1000 & echo $!; wait"});
    ASSERT_EQ(process.read_line(pid, in(kLong), 100), Result::kDone);
    std::string line;
    EXPECT_EQ(process.read_line(line, in(20), 100), Result::kLate);
    EXPECT_EQ(process.wait(in(1)), std::nullopt);
    EXPECT_EQ(::kill(std::stoi(pid), 0), 0);
  }
  // The grandchild is gone, or a zombie that init has not collected yet.
  const auto deadline = in(kLong);
  const auto is_gone = [&] {
    return ::kill(std::stoi(pid), 0) != 0 || system(("grep -q '^State:.Z' /proc/" + pid + "/status").c_str()) == 0;
  };
  while (!is_gone() && std::chrono::steady_clock::now() < deadline)
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  EXPECT_TRUE(is_gone());
}

TEST(ChildProcess, SaysThatAProgramEndedOrWritesTooMuch) {
  ChildProcess gone({"true"});
  EXPECT_EQ(gone.wait(in(kLong)), 0);
  EXPECT_EQ(gone.write(std::string(1 << 20, 'x'), in(kLong)), Result::kClosed);  // and no SIGPIPE ends us
  ChildProcess endless({"yes", std::string(1000, 'y')});
  std::string output, errors;
  EXPECT_EQ(endless.read_all(output, errors, in(kLong), 10'000), Result::kTooLong);
  ChildProcess killed({"sh", "-c", "kill -9 $$"});
  EXPECT_EQ(killed.wait(in(kLong)), 128 + SIGKILL);
}

TEST(ChildProcess, AnotherThreadMayEndIt) {
  ChildProcess sleeper({"sleep", "1000"});
  std::thread other([&sleeper] { sleeper.interrupt(); });
  std::string line;
  EXPECT_EQ(sleeper.read_line(line, in(kLong), 100), Result::kClosed);
  other.join();
  EXPECT_EQ(sleeper.wait(in(kLong)), 128 + SIGKILL);
  sleeper.interrupt();  // there is nobody any more
}

TEST(ChildProcess, NamesAProgramThatIsNotThere) {
  try {
    ChildProcess nobody({"no-such-program-here"});
    FAIL() << "started";
  } catch (const IoError& error) {
    EXPECT_STREQ(error.what(), "no-such-program-here cannot be started: No such file or directory.");
  }
}

}  // namespace
}  // namespace temper
