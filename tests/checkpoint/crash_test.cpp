// A save is cut off or fails at each of its system calls; afterwards the newest or the previous checkpoint loads,
// whole.
#include <gmock/gmock.h>

#include <filesystem>

#include "checkpoint/atomic_directory.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

class Crash : public testing::Test {
 protected:
  // Each failure is also logged: thousands of lines here.
  Crash() { set_log_level(LogLevel::kError); }
  ~Crash() override { set_log_level(LogLevel::kInfo); }
};

// The state of a store after `attempt`; every folder under a final name must be whole.
int64_t newest_whole_step(const std::string& directory) {
  QuickFileSystem files;
  CheckpointStore store(files, directory, 2);
  const auto all = store.list(CheckDepth::kEveryByte);
  for (const CheckpointInfo& info : all) EXPECT_TRUE(info.good) << info.why_not;
  if (all.empty()) return -1;
  expect_loads_as(files, all[0].path, example_state(all[0].step));
  return all[0].step;
}

struct Outcome {
  bool fired = false;  // the fault was met: not beyond the last call
  bool threw = false;
};

// Makes `directory` hold steps 1 and 2: saved once, then copied.
void prepare(const std::string& directory) {
  static const TemporaryFolder prepared;
  if (std::filesystem::is_empty(prepared.path())) {
    QuickFileSystem files;
    CheckpointStore store(files, prepared.path(), 2);
    store.save(example_state(1));
    store.save(example_state(2));
  }
  std::filesystem::copy(prepared.path(), directory, std::filesystem::copy_options::recursive);
}

// Steps 1 and 2 exist; step `step` is saved with a fault at call number `at`.
Outcome save_with_fault(const std::string& directory, int64_t step, Fault fault, int64_t at, int error,
                        bool lose_unsynced) {
  prepare(directory);
  FaultFileSystem files;
  files.fault = fault;
  files.fault_at = at;
  files.error = error;
  CheckpointStore store(files, directory, 2);
  Outcome outcome;
  try {
    store.save(example_state(step));
  } catch (const IoError&) {
    outcome.threw = true;
  }
  outcome.fired = files.fired;
  if (lose_unsynced) files.lose_unsynced(directory);
  return outcome;
}

// Runs `body(at)` for at = 0, 1, … until the fault is beyond the last call.
template <class F>
int64_t for_each_call(F&& body) {
  int64_t at = 0;
  while (body(at)) {
    ++at;
    if (at > 1000) {
      ADD_FAILURE() << "a save should not need a thousand system calls";
      break;
    }
  }
  return at;
}

TEST_F(Crash, AtAnyCallLeavesTheNewOrThePreviousCheckpointWhole) {
  for (const bool power_cut : {false, true})
    for (const int64_t step : {3, 2}) {  // a new step, and the same step again (which replaces it)
      int64_t seen_old = 0;
      int64_t seen_new = 0;
      const int64_t calls = for_each_call([&](int64_t at) {
        TemporaryFolder folder;
        const Outcome outcome = save_with_fault(folder.path(), step, Fault::kCrash, at, EIO, power_cut);
        const int64_t newest = newest_whole_step(folder.path());
        EXPECT_TRUE(newest == 2 || newest == step) << newest << " after a crash at call " << at;
        EXPECT_TRUE(outcome.threw || newest == step) << "save() returned, so the step must be durable; call " << at;
        ++(newest == step ? seen_new : seen_old);
        // The next start cleans up and saves on.
        QuickFileSystem files;
        CheckpointStore store(files, folder.path(), 2);
        store.remove_stale();
        store.save(example_state(4));
        EXPECT_EQ(newest_whole_step(folder.path()), 4);
        for (const std::string& name : list_folder(files, folder.path()))
          EXPECT_EQ(name.find(".tmp-"), std::string::npos) << name;
        return outcome.fired;
      });
      EXPECT_GT(calls, 40);
      EXPECT_GT(seen_old, step == 3 ? 20 : -1);
      EXPECT_GT(seen_new, 1);
    }
}

TEST_F(Crash, AnErrorAtAnyCallIsTypedAndLeavesThePreviousCheckpointWhole) {
  for (const int error : {ENOSPC, EIO, EMFILE}) {
    int64_t threw = 0;
    for_each_call([&](int64_t at) {
      TemporaryFolder folder;
      const Outcome outcome = save_with_fault(folder.path(), 3, Fault::kError, at, error, false);
      const int64_t newest = newest_whole_step(folder.path());
      EXPECT_TRUE(newest == 2 || newest == 3);
      EXPECT_TRUE(outcome.threw || newest == 3) << "call " << at;
      threw += outcome.threw;
      QuickFileSystem files;
      CheckpointStore store(files, folder.path(), 2);
      store.remove_stale();
      store.save(example_state(4));
      EXPECT_EQ(newest_whole_step(folder.path()), 4);
      return outcome.fired;
    });
    EXPECT_GT(threw, 15);
  }
}

TEST_F(Crash, ShortTransfersAndInterruptionsAtAnyCallDoNotDisturbASave) {
  for (const Fault fault : {Fault::kShort, Fault::kInterrupted})
    for_each_call([&](int64_t at) {
      TemporaryFolder folder;
      const Outcome outcome = save_with_fault(folder.path(), 3, fault, at, EINTR, false);
      EXPECT_FALSE(outcome.threw) << "call " << at;
      EXPECT_EQ(newest_whole_step(folder.path()), 3);
      return outcome.fired;
    });
}

TEST_F(Crash, AnErrorAtAnyCallOfALoadIsTyped) {
  TemporaryFolder folder;
  QuickFileSystem good;
  const CheckpointState state = example_state(1);
  const std::string path = CheckpointStore(good, folder.path(), 2).save(state);
  for (const Fault fault : {Fault::kError, Fault::kShort, Fault::kInterrupted})
    for_each_call([&](int64_t at) {
      FaultFileSystem files;
      files.fault = fault;
      files.fault_at = at;
      const auto tensors = blank_copy(state.tensors);
      try {
        load_checkpoint(files, path, [&](const CheckpointHeader&) { return tensors; });
        for (size_t i = 0; i < tensors.size(); ++i) EXPECT_TRUE(same_bits(tensors[i].tensor, state.tensors[i].tensor));
      } catch (const IoError&) {
        EXPECT_EQ(fault, Fault::kError);
      }
      return files.fired;
    });
}

TEST_F(Crash, AfterAFailedFsyncAllIsWrittenOnceMoreUnderANewName) {
  TemporaryFolder folder;
  FaultFileSystem files;
  files.fault = Fault::kError;
  files.only = "fsync";
  CheckpointStore store(files, folder.path(), 2);
  for (int64_t at = 0; at < 4; ++at) {  // shard, global.h5, manifest.json, COMMITTED
    files.calls = 0;
    files.fired = false;
    files.fault_at = at;
    store.save(example_state(at + 1));
    EXPECT_TRUE(files.fired);
    EXPECT_EQ(newest_whole_step(folder.path()), at + 1);
  }
}

TEST_F(Crash, AFolderIsReplacedWholeOrNotAtAll) {
  for (const bool power_cut : {false, true})
    for (const Fault fault : {Fault::kError, Fault::kCrash})
      for_each_call([&](int64_t at) {
        TemporaryFolder folder;
        QuickFileSystem good;
        const auto fill = [](FileSystem& files, const std::string& text) {
          return [&files, text](const std::string& path) {
            write_synced_file(files, path + "/config.json", text);
            make_folders(files, path + "/sub");
            write_synced_file(files, path + "/sub/model.safetensors", text + text);
          };
        };
        const std::string path = folder.path() + "/stages/sft/model";
        write_directory_atomically(good, path, fill(good, "old"));
        FaultFileSystem files;
        files.fault = fault;
        files.fault_at = at;
        bool threw = false;
        try {
          write_directory_atomically(files, path, fill(files, "new"));
        } catch (const IoError&) {
          threw = true;
        }
        if (power_cut) files.lose_unsynced(folder.path());
        const std::string text = read_whole_file(good, path + "/config.json", 100);
        EXPECT_EQ(read_whole_file(good, path + "/sub/model.safetensors", 100), text + text);
        EXPECT_TRUE(text == "new" || (threw && text == "old")) << text;
        remove_unfinished(good, parent_folder(path));
        EXPECT_THAT(list_folder(good, parent_folder(path)), testing::ElementsAre("model"));
        return files.fired;
      });
}

TEST_F(Crash, WithoutAtomicExchangeTheOldFolderIsMovedAside) {
  TemporaryFolder folder;
  FaultFileSystem files;
  files.only = "exchange";
  files.fault = Fault::kError;
  files.fault_at = 0;
  files.error = EINVAL;  // what NFS says
  const std::string path = folder.path() + "/model";
  for (const char* text : {"old", "new"})
    write_directory_atomically(files, path,
                               [&](const std::string& temporary) { write_synced_file(files, temporary + "/f", text); });
  EXPECT_TRUE(files.fired);
  EXPECT_EQ(read_whole_file(files, path + "/f", 10), "new");
  EXPECT_THAT(list_folder(files, folder.path()), testing::ElementsAre("model"));
}

TEST_F(Crash, AFillerThatThrowsLeavesNothing) {
  TemporaryFolder folder;
  QuickFileSystem files;
  EXPECT_THROW(
      write_directory_atomically(files, folder.path() + "/model", [](const std::string&) { throw ConfigError("no"); }),
      ConfigError);
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

}  // namespace
}  // namespace temper
