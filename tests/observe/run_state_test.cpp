#include "observe/run_state.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <limits>
#include <stdexcept>

#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/process.h"
#include "observe/metric_sink.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

std::string fresh_folder() {
  const std::string folder =
      testing::TempDir() + "run_state_" + testing::UnitTest::GetInstance()->current_test_info()->name();
  std::filesystem::remove_all(folder);
  std::filesystem::create_directories(folder);
  return folder;
}

constexpr double kNow = 1'800'000'000;

RunStatus running_status() {
  RunStatus status;
  status.phase = RunPhase::kRunning;
  status.run = "a";
  status.version = "0.1.0";
  status.host = "n1";
  status.pid = 123;
  status.start_ticks = 77;
  status.num_ranks = 2;
  status.command = "temper run a.toml --data.prompt_template='{prompt}\n'";
  status.started = kNow - 100;
  status.heartbeat = kNow - 1;
  status.progress = kNow - 2;
  status.stages = {{"sft", 20, "runs/a/checkpoints/sft"}, {"grpo", 100, "runs/a/checkpoints/grpo"}};
  status.stage = 1;
  status.step = 40;
  status.policy_version = 60;
  status.seconds_per_step = 1.5;
  status.failed_saves = 2;
  status.saved_stage = 1;
  status.saved_step = 38;
  status.saved = kNow - 5;
  return status;
}

// On n1, where process 123 is in the given state.
Observer on_its_host(char process, int64_t start_ticks = 77) {
  return {"n1", kNow, [process](int64_t pid) { return pid == 123 ? process : '?'; },
          [start_ticks](int64_t) { return start_ticks; }};
}
Observer elsewhere(double now = kNow) {
  return {"n2", now, [](int64_t) { return 'S'; }, [](int64_t) { return int64_t{77}; }};
}

std::string folder_with(const RunStatus& status) {
  const std::string folder = fresh_folder();
  write_file_atomically(folder + "/status.json", to_json(status));
  return folder;
}

TEST(RunStatus, ReadsBackAsItWasWritten) {
  const RunStatus status = running_status();
  const std::string text = to_json(status);
  EXPECT_EQ(to_json(parse_run_status(text)), text);
  EXPECT_EQ(parse_run_status(text).command, status.command);
  EXPECT_EQ(parse_run_status(text).stages[1].checkpoints, "runs/a/checkpoints/grpo");
  EXPECT_DOUBLE_EQ(parse_run_status(text).seconds_left(), 90);
}

TEST(RunStatus, WhatIsNoStatusIsRefused) {
  EXPECT_THROW(parse_run_status("{"), std::invalid_argument);
  EXPECT_THROW(parse_run_status("{}"), std::invalid_argument);
  RunStatus status = running_status();
  status.stage = 2;  // of two
  EXPECT_THROW(parse_run_status(to_json(status)), std::invalid_argument);
  const std::string folder = fresh_folder();
  write_file_atomically(folder + "/status.json", "[1]");
  EXPECT_THROW(read_run_state(folder, elsewhere()), FormatError);
}

TEST(StatusFile, TellsTheLastWordOfARun) {
  const std::string path = fresh_folder() + "/status.json";
  RunStatus given;
  given.run = "a";
  given.stages = running_status().stages;
  {
    StatusFile file(path, given);
    EXPECT_EQ(read_run_status(path)->phase, RunPhase::kStarting);
    EXPECT_EQ(read_run_status(path)->pid, getpid());
    EXPECT_EQ(read_run_status(path)->start_ticks, process_start_ticks(getpid()));
    file.begin_stage(1, 10);
    EXPECT_EQ(read_run_status(path)->phase, RunPhase::kRunning);
    MetricRecord record;
    record.step = 12;
    record.policy_version = 32;
    file.update(record);
    file.saved(12, true);
    file.saved(13, false);
    file.end(RunPhase::kFailed, 6, "the loss is nan");
  }
  const RunStatus status = *read_run_status(path);
  EXPECT_EQ(status.phase, RunPhase::kFailed);
  EXPECT_EQ(status.exit_code, 6);
  EXPECT_EQ(status.error, "the loss is nan");
  EXPECT_EQ(status.step, 12);
  EXPECT_EQ(status.policy_version, 32);
  EXPECT_EQ(status.saved_stage, 1);
  EXPECT_EQ(status.saved_step, 12);
  EXPECT_EQ(status.failed_saves, 1);
}

TEST(StatusFile, GoesOnWritingBetweenSteps) {
  const std::string path = fresh_folder() + "/status.json";
  RunStatus given;
  given.stages = running_status().stages;
  StatusFile file(path, given);
  file.begin_stage(0, 0);
  MetricRecord record;
  record.step = 7;
  file.update(record);
  const Stopwatch watch;
  while (read_run_status(path)->step != 7 && watch.seconds() < 60) usleep(10'000);
  EXPECT_EQ(read_run_status(path)->step, 7);
}

TEST(RunState, AProcessOfThisMachineIsLookedAt) {
  const std::string folder = folder_with(running_status());
  EXPECT_EQ(read_run_state(folder, on_its_host('R')).state, RunState::kRunning);
  EXPECT_EQ(read_run_state(folder, on_its_host('?')).state, RunState::kDead);
  EXPECT_EQ(read_run_state(folder, on_its_host('Z')).state, RunState::kDead);
  EXPECT_EQ(read_run_state(folder, on_its_host('R', 78)).state, RunState::kDead) << "another process of that number";
  const RunReading stopped = read_run_state(folder, on_its_host('T'));
  EXPECT_EQ(stopped.state, RunState::kRunning);
  EXPECT_THAT(stopped.notes, ElementsAre(HasSubstr("kill -CONT 123")));
}

TEST(RunState, OfAnotherMachineTheHeartbeatIsAllThereIs) {
  const std::string folder = folder_with(running_status());
  const RunReading fresh = read_run_state(folder, elsewhere());
  EXPECT_EQ(fresh.state, RunState::kRunning);
  EXPECT_THAT(fresh.notes, IsEmpty());
  EXPECT_DOUBLE_EQ(fresh.heartbeat_age_s, 1);
  const RunReading old = read_run_state(folder, elsewhere(kNow + 600));
  EXPECT_EQ(old.state, RunState::kSilent);
  EXPECT_THAT(old.notes, ElementsAre(AllOf(HasSubstr("n1 was last heard 601 s ago"), HasSubstr("process 123"))));
  const RunReading ahead = read_run_state(folder, elsewhere(kNow - 61));
  EXPECT_EQ(ahead.state, RunState::kRunning);
  EXPECT_THAT(ahead.notes, ElementsAre(HasSubstr("the clock of n1 is at least 60 s ahead")));
}

TEST(RunState, WhatTheProcessSaidLastHolds) {
  for (const auto& [phase, state] :
       {std::pair(RunPhase::kFinished, RunState::kFinished), std::pair(RunPhase::kFailed, RunState::kFailed),
        std::pair(RunPhase::kStopped, RunState::kStopped)}) {
    RunStatus status = running_status();
    status.phase = phase;
    EXPECT_EQ(read_run_state(folder_with(status), on_its_host('?')).state, state);
  }
}

TEST(RunState, ARunWithoutStatusIsJudgedByLockAndModel) {
  const std::string folder = fresh_folder();
  write_file_atomically(folder + "/lock", "host n1 pid 123\n");
  EXPECT_EQ(read_run_state(folder, on_its_host('R')).state, RunState::kStarting);
  EXPECT_EQ(read_run_state(folder, on_its_host('?')).state, RunState::kDead);
  EXPECT_EQ(read_run_state(folder, on_its_host('?')).holder, "host n1 pid 123");
  std::filesystem::create_directories(folder + "/model");
  write_file_atomically(folder + "/model/config.json", "{}");
  EXPECT_EQ(read_run_state(folder, on_its_host('?')).state, RunState::kFinished);
}

TEST(RunState, TheLatestValuesOfTheLastStageAreTaken) {
  const std::string folder = folder_with(running_status());
  {
    JsonlSink sink(folder + "/metrics.jsonl");
    const auto write = [&sink](const char* stage, int64_t step, const char* name, double value) {
      MetricRecord record;
      record.stage = stage;
      record.step = step;
      record.values = {{name, value}};
      sink.write(record);
    };
    write("sft", 20, "loss", 2);
    write("grpo", 1, "eval/a/accuracy", 0.5);
    write("grpo", 2, "reward", 0.25);
    write("grpo", 3, "reward", 0.75);
  }
  LineWriter(folder + "/metrics.jsonl").append("{\"stage\": \"torn");
  const RunReading reading = read_run_state(folder, on_its_host('R'));
  EXPECT_EQ(reading.stage, "grpo");
  ASSERT_EQ(reading.metrics.size(), 2u);
  EXPECT_EQ(reading.metrics[0].first, "eval/a/accuracy");
  EXPECT_EQ(reading.metrics[0].second.step, 1);
  EXPECT_EQ(reading.metrics[1].second.step, 3);
  EXPECT_EQ(reading.metrics[1].second.value, 0.75);
}

TEST(RunState, OfALongFileTheEndIsRead) {
  const std::string folder = folder_with(running_status());
  {
    JsonlSink sink(folder + "/metrics.jsonl");
    MetricRecord record;
    record.stage = "grpo";
    record.values = {{std::string(1000, 'x'), 1}};
    for (record.step = 1; record.step <= 6000; ++record.step) sink.write(record);
  }
  const RunReading reading = read_run_state(folder, on_its_host('R'));
  ASSERT_EQ(reading.metrics.size(), 1u);
  EXPECT_EQ(reading.metrics[0].second.step, 6000);
}

TEST(RunState, WhatIsNoRunIsSaid) {
  const std::string folder = fresh_folder();
  try {
    read_run_state(folder, elsewhere());
    FAIL() << "an empty folder is no run";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("holds none of status.json, lock and metrics.jsonl"));
  }
  try {
    read_run_state(folder + "/none", elsewhere());
    FAIL() << "no folder is no run";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("there is no such folder"));
  }
}

}  // namespace
}  // namespace temper
