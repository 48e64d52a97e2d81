// Saving in the background: what was handed over is saved, whatever becomes of it meanwhile, and nobody waits.
#include "checkpoint/writer.h"

#include <gmock/gmock.h>

#include <latch>

#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

using testing::HasSubstr;

// A disk that writes nothing until the gate opens.
class GatedFileSystem : public QuickFileSystem {
 public:
  std::latch gate{1};
  ssize_t pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) override {
    gate.wait();
    return QuickFileSystem::pwrite(descriptor, data, size_bytes, offset);
  }
};

class Writer : public testing::Test {
 protected:
  Writer() { set_log_level(LogLevel::kError); }
  ~Writer() override { set_log_level(LogLevel::kInfo); }
  TemporaryFolder folder_;
};

TEST_F(Writer, SavesWhatTheStateWasAndLetsTheCallerGoOn) {
  GatedFileSystem files;
  CheckpointStore store(files, folder_.path(), 2);
  CheckpointWriter writer(store);
  CheckpointState state = example_state(1);
  state.tensors.push_back({"model/large", example_tensor({1500, 2001}, at::kFloat, 1)});  // copied in several pieces
  CheckpointState expected = state;
  for (TensorEntry& entry : expected.tensors) entry.tensor = entry.tensor.clone();
  EXPECT_FALSE(writer.busy());
  writer.begin(state);
  EXPECT_TRUE(writer.busy());
  EXPECT_FALSE(writer.ended());
  for (TensorEntry& entry : state.tensors) entry.tensor.zero_();
  files.gate.count_down();
  writer.finish();
  EXPECT_FALSE(writer.busy());
  expect_loads_as(files, folder_.path() + "/step_000001", expected);
}

TEST_F(Writer, UsesOneBufferAgainAndAgain) {
  QuickFileSystem files;
  CheckpointStore store(files, folder_.path(), 2);
  CheckpointWriter writer(store);
  EXPECT_EQ(writer.staging_bytes(), 0);
  for (int64_t step = 1; step <= 3; ++step) {
    writer.begin(example_state(step));
    writer.finish();
    EXPECT_EQ(writer.staging_bytes(), 64 + 64 + 64 + 64);  // 60, 12, 60 and 8 bytes, each at a multiple of 64
    expect_loads_as(files, format("{}/step_00000{}", folder_.path(), step), example_state(step));
  }
}

TEST_F(Writer, AFailedSaveIsThrownOnceAndTheNextOneIsMade) {
  FaultFileSystem files;
  files.fault = Fault::kError;
  files.only = "pwrite";
  files.fault_at = 0;
  files.error = ENOSPC;
  CheckpointStore store(files, folder_.path(), 2);
  CheckpointWriter writer(store);
  writer.begin(example_state(1));
  EXPECT_THAT(error_text<IoError>([&] { writer.finish(); }), HasSubstr("No space left"));
  writer.begin(example_state(2));
  writer.finish();
  EXPECT_EQ(store.list().size(), 1u);
}

TEST_F(Writer, WaitsForTheSaveUnderWayBeforeItGoes) {
  QuickFileSystem files;
  CheckpointStore store(files, folder_.path(), 2);
  CheckpointWriter(store).begin(example_state(1));
  expect_loads_as(files, folder_.path() + "/step_000001", example_state(1));
}

TEST_F(Writer, TakesOneSaveAtATime) {
  QuickFileSystem files;
  CheckpointStore store(files, folder_.path(), 2);
  CheckpointWriter writer(store);
  EXPECT_THROW(writer.finish(), InvariantError);
  writer.begin(example_state(1));
  EXPECT_THROW(writer.begin(example_state(2)), InvariantError);
  writer.finish();
}

TEST_F(Writer, RanksGoOnWithTheirOwnCollectivesWhileTheirWritersAgree) {
  GatedFileSystem slow;
  QuickFileSystem quick;
  std::latch trained(3);
  on_thread_ranks(3, {.timeout = std::chrono::seconds(60), .check_agreement = true}, [&](Communicator& comm) {
    const auto store_ranks = comm.split(0, comm.rank());
    FileSystem& files = comm.rank() == 1 ? static_cast<FileSystem&>(slow) : quick;
    CheckpointStore store(files, folder_.path(), 2, store_ranks.get());
    CheckpointWriter writer(store);
    CheckpointState state = example_state(1);
    for (TensorEntry& entry : state.tensors) entry.name += format("_of_rank_{}", comm.rank());
    writer.begin(state);
    for (int step = 0; step < 5; ++step) {
      const at::Tensor sum = at::ones({4});
      comm.all_reduce("gradients", sum).wait();
      EXPECT_EQ(sum[0].item<float>(), 3);
    }
    EXPECT_FALSE(writer.ended());  // rank 1's disk has written nothing yet
    trained.arrive_and_wait();
    if (comm.rank() == 1) slow.gate.count_down();
    writer.finish();
  });
  QuickFileSystem files;
  const auto infos = CheckpointStore(files, folder_.path(), 2).list(CheckDepth::kEveryByte);
  ASSERT_EQ(infos.size(), 1u);
  EXPECT_TRUE(infos[0].good) << infos[0].why_not;
}

}  // namespace
}  // namespace temper
