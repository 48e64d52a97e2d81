#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "checkpoint/checkpoint.h"
#include "core/process.h"
#include "observe/run_status.h"
#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string save_step(const std::string& run_dir, int64_t step) {
  FileSystem files;
  CheckpointStore store(files, run_dir + "/checkpoints/grpo", 2);
  CheckpointState state;
  state.header.run = "a";
  state.header.stage = "grpo";
  state.header.step = step;
  state.header.config_toml = "[run]\n";
  state.tensors = {{"model/a.weight", at::arange(6, at::kFloat)}};
  return store.save(state);
}

// A run of this very process.
RunStatus own_status(const std::string& run_dir) {
  RunStatus status;
  status.phase = RunPhase::kRunning;
  status.run = "a";
  status.host = host_name();
  status.pid = getpid();
  status.start_ticks = process_start_ticks(getpid());
  status.folder = "/somewhere";
  status.command = "temper run a.toml";
  status.stages = {{"grpo", 100, run_dir + "/checkpoints/grpo"}};
  status.stage = 0;
  status.step = 12;
  status.seconds_per_step = 2;
  status.failed_saves = 1;
  return status;
}

TEST(StatusCommand, SaysWhoIsAliveHowFarAndWhatIsSaved) {
  const TemporaryFolder folder;
  const std::string dir = folder.path();
  const std::string saved = save_step(dir, 10);
  std::filesystem::create_directories(dir + "/checkpoints/grpo/step_000012.tmp-abc");
  replace_file(dir + "/status.json", to_json(own_status(dir)));
  LineWriter(dir + "/metrics.jsonl")
      .append(R"({"stage": "grpo", "step": 12, "policy_version": 12, "time": 1.0, "reward": 0.5, "loss": 0.25})");

  const RunResult text = run_temper({"status", dir});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr(": running, host " + host_name()), HasSubstr("grpo (1 of 1), step 12 of 100"),
                              HasSubstr("2 s a step, 2:56 left"), HasSubstr("reward 0.5 (step 12)"),
                              HasSubstr("grpo: step 10, committed"), HasSubstr("1 unfinished"), HasSubstr("1 saves")));

  const RunResult json = run_temper({"status", dir + "/", "--json"});
  EXPECT_EQ(json.exit_code, 0) << json.err;
  const auto object = nlohmann::json::parse(json.out);
  EXPECT_EQ(object["state"], "running");
  EXPECT_EQ(object["status"]["step"], 12);
  EXPECT_EQ(object["metrics"]["loss"]["value"], 0.25);
  EXPECT_EQ(object["checkpoints"][0]["newest"]["step"], 10);
  EXPECT_EQ(object["checkpoints"][0]["newest"]["path"], saved);
  EXPECT_EQ(object["checkpoints"][0]["unfinished"], 1);
  EXPECT_EQ(object["next"], "");
}

TEST(StatusCommand, ADeadRunComesWithTheCommandThatContinuesIt) {
  const TemporaryFolder folder;
  const std::string dir = folder.path();
  RunStatus status = own_status(dir);
  status.start_ticks += 1;  // the number now belongs to another process
  replace_file(dir + "/status.json", to_json(status));
  const RunResult text = run_temper({"status", dir});
  EXPECT_EQ(text.exit_code, 0) << text.err;
  EXPECT_THAT(text.out, AllOf(HasSubstr(": dead"), HasSubstr("cd /somewhere && temper run a.toml")));
}

TEST(StatusCommand, AFailedRunSaysWhy) {
  const TemporaryFolder folder;
  RunStatus status = own_status(folder.path());
  status.phase = RunPhase::kFailed;
  status.exit_code = 6;
  status.error = "the loss is nan";
  replace_file(folder.path() + "/status.json", to_json(status));
  EXPECT_THAT(run_temper({"status", folder.path()}).out,
              AllOf(HasSubstr(": failed"), HasSubstr("the loss is nan (exit code 6)"), HasSubstr("temper run a.toml")));
}

TEST(StatusCommand, ADamagedCheckpointIsPassedOverAndSaid) {
  const TemporaryFolder folder;
  const std::string dir = folder.path();
  save_step(dir, 10);
  std::filesystem::remove(save_step(dir, 20) + "/COMMITTED");
  replace_file(dir + "/status.json", to_json(own_status(dir)));
  EXPECT_THAT(run_temper({"status", dir}).out,
              AllOf(HasSubstr("grpo: step 10, committed"), HasSubstr("not usable: "), HasSubstr("step_000020")));
}

TEST(StatusCommand, WhatIsNoRunExits3) {
  const TemporaryFolder folder;
  EXPECT_EQ(run_temper({"status", folder.path()}).exit_code, 3);
  EXPECT_EQ(run_temper({"status", folder.path() + "/none"}).exit_code, 3);
  EXPECT_EQ(run_temper({"status"}).exit_code, 2);
}

}  // namespace
}  // namespace temper
