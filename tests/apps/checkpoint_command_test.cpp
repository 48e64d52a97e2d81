#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/checkpoint.h"
#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

std::string save_one(const std::string& folder) {
  FileSystem files;
  CheckpointStore store(files, folder + "/checkpoints/grpo", 2);
  CheckpointState state;
  state.header.run = "r";
  state.header.stage = "grpo";
  state.header.step = 120;
  state.header.config_toml = "[run]\n";
  state.tensors = {{"model/a.weight", at::arange(6, at::kFloat).reshape({2, 3})}};
  return store.save(state);
}

TEST(CheckpointCommand, ListsDescribesAndVerifies) {
  const TemporaryFolder folder;
  const std::string path = save_one(folder.path());
  const RunResult listed = run_temper({"checkpoint", "ls", folder.path()});
  EXPECT_EQ(listed.exit_code, 0) << listed.err;
  EXPECT_THAT(listed.out, HasSubstr("step_000120"));
  const RunResult described = run_temper({"checkpoint", "info", path});
  EXPECT_EQ(described.exit_code, 0) << described.err;
  EXPECT_THAT(described.out, HasSubstr("model/a.weight"));
  const RunResult verified = run_temper({"checkpoint", "verify", folder.path()});
  EXPECT_EQ(verified.exit_code, 0) << verified.err;
}

TEST(CheckpointCommand, VerifyExits5WhereAByteIsWrong) {
  const TemporaryFolder folder;
  const std::string path = save_one(folder.path());
  const std::string shard = path + "/shard_00000.h5";
  {
    std::fstream file(shard, std::ios::in | std::ios::out | std::ios::binary);
    file.seekg(-1, std::ios::end);
    const char flipped = static_cast<char>(file.get() ^ 1);
    file.seekp(-1, std::ios::end);
    file.put(flipped);
  }
  const RunResult verified = run_temper({"checkpoint", "verify", path});
  EXPECT_EQ(verified.exit_code, 5);
  EXPECT_THAT(verified.out, HasSubstr("shard_00000.h5"));
}

TEST(CheckpointCommand, ReshardsIntoAnotherFolder) {
  const TemporaryFolder folder;
  const std::string path = save_one(folder.path());
  EXPECT_THAT(run_temper({"checkpoint", "reshard", path}).err, HasSubstr("--out=DIR"));
  const std::string out = folder.path() + "/again";
  const RunResult resharded = run_temper({"checkpoint", "reshard", path, "--out=" + out, "--shards=3"});
  EXPECT_EQ(resharded.exit_code, 0) << resharded.err;
  EXPECT_EQ(resharded.out, out + "/step_000120\n");
  EXPECT_TRUE(std::filesystem::exists(out + "/step_000120/shard_00002.h5"));
  EXPECT_EQ(run_temper({"checkpoint", "verify", out}).exit_code, 0);
  EXPECT_EQ(run_temper({"checkpoint", "reshard", path, "--out=" + out}).exit_code, 3);
}

TEST(CheckpointCommand, SaysWhatItCanDo) {
  const RunResult result = run_temper({"checkpoint", "copy", "x"});
  EXPECT_EQ(result.exit_code, 2);
  EXPECT_THAT(result.err, HasSubstr("ACTION=copy is not known. Allowed: ls, info, verify, export, reshard."));
  EXPECT_THAT(run_temper({"checkpoint", "ls"}).err,
              HasSubstr("PATH is missing. Usage: temper checkpoint ls|info|verify|export|reshard PATH"));
}

}  // namespace
}  // namespace temper
