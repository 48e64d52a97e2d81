// The tiers of a stage's checkpoints: where saves and copies go, what a resumed run takes, what a full or lost tier
// costs.
#include "checkpoint/tiers.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/folder.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

constexpr SaveTargets kToRam{.ram = true};
constexpr SaveTargets kToLocal{.local = true};

// A disk on which writing below one folder fails.
class FullBelow : public QuickFileSystem {
 public:
  std::string folder;
  int open(const std::string& path, int flags, mode_t mode) override {
    if ((flags & O_CREAT) != 0 && !folder.empty() && path.starts_with(folder)) {
      errno = ENOSPC;
      return -1;
    }
    return QuickFileSystem::open(path, flags, mode);
  }
};

class Tiers : public testing::Test {
 protected:
  Tiers() { set_log_level(LogLevel::kError); }
  ~Tiers() override { set_log_level(LogLevel::kInfo); }

  TierOptions options() const {
    TierOptions options;
    options.ram = folder_.path() + "/ram";
    options.local = folder_.path() + "/local";
    options.durable = folder_.path() + "/durable";
    return options;
  }
  static int64_t newest_step(CheckpointTiers& tiers) {
    std::vector<TensorEntry> tensors;
    int64_t step = -1;
    const auto loaded = tiers.load_newest([&](const CheckpointHeader& header) {
      step = header.step;
      tensors = blank_copy(example_state(step).tensors);
      return tensors;
    });
    if (!loaded) return -1;
    EXPECT_EQ(loaded->header.step, step);
    const CheckpointState saved = example_state(step);
    for (size_t i = 0; i < tensors.size(); ++i)
      EXPECT_TRUE(same_bits(tensors[i].tensor, saved.tensors[i].tensor)) << tensors[i].name;
    return step;
  }
  std::vector<std::string> steps_in(const std::string& tier) {
    std::vector<std::string> names;
    for (const std::string& name : list_folder(files_, folder_.path() + "/" + tier))
      if (name.starts_with("step_")) names.push_back(name);
    return names;
  }
  void flip_a_byte(const std::string& file) {
    std::string bytes = read_whole_file(files_, folder_.path() + "/" + file, 1 << 30);
    bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
    files_.unlink(folder_.path() + "/" + file);
    write_synced_file(files_, folder_.path() + "/" + file, bytes);
  }

  TemporaryFolder folder_;
  FullBelow files_;
};

TEST_F(Tiers, KeepOneInMemoryAndAsManyAsToldElsewhere) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  EXPECT_EQ(newest_step(tiers), -1);
  for (int64_t step = 1; step <= 8; ++step) {
    EXPECT_THAT(tiers.save(example_state(step), step % 2 == 0 ? kToLocal : kToRam).ram, IsEmpty());
    if (step % 2 == 0) tiers.copy_to_durable(step);
  }
  EXPECT_THAT(steps_in("ram"), ElementsAre("step_000007"));
  EXPECT_THAT(steps_in("local"), ElementsAre("step_000006", "step_000008"));
  EXPECT_THAT(steps_in("durable"), ElementsAre("step_000006", "step_000008"));
  expect_loads_as(files_, folder_.path() + "/durable/step_000008", example_state(8));
  tiers.release_ram();
  EXPECT_THAT(steps_in("ram"), IsEmpty());
}

TEST_F(Tiers, TheNewestThatVerifiesIsTakenFromWhereverItIs) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  tiers.save(example_state(1), kToLocal);
  tiers.copy_to_durable(1);
  tiers.save(example_state(2), kToLocal);
  tiers.copy_to_durable(2);
  tiers.save(example_state(3), kToRam);
  EXPECT_EQ(newest_step(tiers), 3);
  flip_a_byte("ram/step_000003/shard_00000.h5");
  EXPECT_EQ(newest_step(tiers), 2);
  flip_a_byte("local/step_000002/shard_00000.h5");  // the durable copy of the same step is whole
  EXPECT_EQ(newest_step(tiers), 2);
  flip_a_byte("durable/step_000002/global.h5");  // two damaged copies make a good one
  EXPECT_EQ(newest_step(tiers), 2);
  flip_a_byte("durable/step_000002/shard_00000.h5");
  EXPECT_EQ(newest_step(tiers), 1);
  std::filesystem::remove_all(folder_.path() + "/local");  // the machine's disk is gone
  EXPECT_EQ(newest_step(tiers), 1);
  flip_a_byte("durable/step_000001/manifest.json");
  EXPECT_THAT(error_text<FormatError>([&] { newest_step(tiers); }), HasSubstr("none of its 3 checkpoints verifies"));
}

TEST_F(Tiers, AFullMemoryIsReportedAndTheRestGoesOn) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  tiers.save(example_state(1), kToRam);
  files_.folder = folder_.path() + "/ram";
  const SaveReport report = tiers.save(example_state(2), kToRam);
  EXPECT_THAT(report.ram, testing::AllOf(HasSubstr("checkpoint.ram_dir: "), HasSubstr("No space left on device")));
  EXPECT_THAT(steps_in("ram"), ElementsAre("step_000001"));
  EXPECT_THAT(tiers.save(example_state(3), kToLocal).ram, IsEmpty());
  EXPECT_EQ(newest_step(tiers), 3);
}

TEST_F(Tiers, WhatTheLocalDiskRefusesIsKeptInMemory) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  files_.folder = folder_.path() + "/local";
  EXPECT_THROW(tiers.save(example_state(1), kToLocal), IoError);
  EXPECT_EQ(newest_step(tiers), 1);
}

TEST_F(Tiers, ADamagedOrUnwritableCopyLeavesTheDurableFolderAsItWas) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  tiers.save(example_state(1), kToLocal);
  tiers.copy_to_durable(1);
  tiers.save(example_state(2), kToLocal);
  flip_a_byte("local/step_000002/shard_00000.h5");
  EXPECT_THAT(error_text<FormatError>([&] { tiers.copy_to_durable(2); }), HasSubstr("shard_00000.h5, block 0"));
  files_.folder = folder_.path() + "/durable";
  EXPECT_THAT(error_text<IoError>([&] { tiers.copy_to_durable(1); }), HasSubstr("No space left on device"));
  files_.folder.clear();
  EXPECT_THAT(list_folder(files_, folder_.path() + "/durable"), ElementsAre("LATEST", "step_000001"));
  expect_loads_as(files_, folder_.path() + "/durable/step_000001", example_state(1));
}

TEST_F(Tiers, ACheckpointThatIsBeingCopiedIsNotDeleted) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  for (int64_t step = 1; step <= 4; ++step) {
    tiers.save(example_state(step), kToLocal);
    if (step == 1) tiers.pin(1);
  }
  EXPECT_THAT(steps_in("local"), ElementsAre("step_000001", "step_000003", "step_000004"));
  tiers.copy_to_durable(1);
  tiers.unpin();
  tiers.save(example_state(5), kToLocal);
  EXPECT_THAT(steps_in("local"), ElementsAre("step_000004", "step_000005"));
  EXPECT_THAT(steps_in("durable"), ElementsAre("step_000001"));
}

TEST_F(Tiers, AFolderThatCannotBeUsedIsNamedByItsKeyAtTheStart) {
  std::ofstream(folder_.path() + "/file") << "x";
  for (const char* key : {"checkpoint.ram_dir", "checkpoint.durable_dir"}) {
    TierOptions broken = options();
    (key == std::string("checkpoint.ram_dir") ? broken.ram : broken.durable) = folder_.path() + "/file/below";
    CheckpointTiers tiers(files_, broken);
    EXPECT_THAT(error_text<IoError>([&] { tiers.prepare(); }), HasSubstr(format("{} cannot be used: ", key)));
  }
}

TEST_F(Tiers, WhatIsGivenUpIsSetAsideInEveryTier) {
  CheckpointTiers tiers(files_, options());
  tiers.prepare();
  for (int64_t step = 1; step <= 3; ++step) {
    tiers.save(example_state(step), kToLocal);
    tiers.copy_to_durable(step);
  }
  tiers.save(example_state(4), kToRam);
  tiers.set_aside_newer_than(2);
  EXPECT_EQ(newest_step(tiers), 2);
  EXPECT_THAT(steps_in("ram"), IsEmpty());
  EXPECT_THAT(steps_in("durable"), ElementsAre("step_000002", testing::StartsWith("step_000003.aside-")));
}

}  // namespace
}  // namespace temper
