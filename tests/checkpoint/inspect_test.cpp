#include "checkpoint/inspect.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class Inspect : public testing::Test {
 protected:
  Inspect() {
    for (const char* stage : {"grpo", "sft"}) {
      CheckpointStore store(files_, run_ + "/checkpoints/" + stage, 5);
      for (int64_t step : {9, 10}) store.save(example_state(step));
    }
  }
  TemporaryFolder folder_;
  QuickFileSystem files_;
  std::string run_ = folder_.path() + "/demo";
};

TEST_F(Inspect, FindsCheckpointsFromRunStageOrCheckpointFolder) {
  const std::string base = run_ + "/checkpoints/";
  EXPECT_THAT(find_checkpoints(files_, run_), ElementsAre(base + "grpo/step_000010", base + "grpo/step_000009",
                                                          base + "sft/step_000010", base + "sft/step_000009"));
  EXPECT_EQ(find_checkpoints(files_, run_ + "/checkpoints").size(), 4u);
  EXPECT_THAT(find_checkpoints(files_, base + "sft"), ElementsAre(base + "sft/step_000010", base + "sft/step_000009"));
  EXPECT_THAT(find_checkpoints(files_, base + "sft/step_000009"), ElementsAre(base + "sft/step_000009"));
  EXPECT_THAT(error_text<IoError>([&] { find_checkpoints(files_, folder_.path() + "/none"); }),
              HasSubstr("no such folder"));
  EXPECT_THAT(error_text<IoError>([&] { find_checkpoints(files_, folder_.path()); }), HasSubstr("no checkpoint below"));
}

TEST_F(Inspect, ListSaysWhichAreNotUsableAndWhy) {
  std::filesystem::remove(run_ + "/checkpoints/sft/step_000010/COMMITTED");
  const std::string text = list_checkpoints(files_, run_);
  EXPECT_THAT(text, AllOf(HasSubstr("grpo/step_000010  stage grpo  step 10  10.38 kB"), HasSubstr("UTC"),
                          HasSubstr("sft/step_000010  NOT USABLE: "), HasSubstr("COMMITTED is missing")));
}

TEST_F(Inspect, InfoNamesRunFilesStatesAndTensors) {
  EXPECT_THAT(describe_checkpoint(files_, run_),
              AllOf(HasSubstr("run demo, stage grpo, step 10, policy version 110, epoch 2"),
                    HasSubstr("format version 1"), HasSubstr("shard_00000.h5  2.19 kB"), HasSubstr("rng  29 B"),
                    HasSubstr("model/embed.weight  f32 [5, 3]"), HasSubstr("optim/step  i64 []")));
}

TEST_F(Inspect, TensorsOfOnePrefixAreReadIntoNewMemory) {
  const std::string path = run_ + "/checkpoints/grpo/step_000010";
  const auto tensors = read_tensors(files_, path, "model/");
  ASSERT_EQ(tensors.size(), 2u);
  EXPECT_EQ(tensors[1].name, "model/norm.weight");
  EXPECT_TRUE(same_bits(tensors[0].tensor, example_state(10).tensors[0].tensor));
  EXPECT_TRUE(same_bits(tensors[1].tensor, example_state(10).tensors[1].tensor));
  ChangedFileSystem changed;
  changed.name = "shard_00000.h5";
  changed.change = [](char* bytes, int64_t, int64_t) { bytes[0] = 'x'; };
  EXPECT_THAT(error_text<FormatError>([&] { read_tensors(changed, path, "model/"); }),
              HasSubstr("shard_00000.h5, block 0"));
}

}  // namespace
}  // namespace temper
