// Several ranks, threads here, save and load one checkpoint: any number loads what any number saved, and what befalls
// one rank all of them hear.
#include "checkpoint/together.h"

#include <gmock/gmock.h>

#include <atomic>
#include <filesystem>
#include <mutex>

#include "checkpoint/entries.h"
#include "checkpoint/folder.h"
#include "checkpoint/reshard.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

using testing::HasSubstr;

const CommOptions kPatience{.timeout = std::chrono::seconds(120), .check_agreement = true};

// How a world's ranks share the tensors out: each replica's ranks alike.
struct World {
  int ranks = 1, replicas = 1;
  int shares() const { return ranks / replicas; }
};

std::vector<TensorEntry> whole_tensors(int64_t step) {
  return {{"model/rows", example_tensor({13, 60013}, at::kFloat, step)},
          {"model/columns", example_tensor({40, 2053}, at::kBFloat16, step)},
          {"model/norm", example_tensor({7}, at::kFloat, step)},
          {"optim/flat", example_tensor({37, 9, 101}, at::kFloat, step)},
          {"optim/none", example_tensor({0, 3}, at::kFloat, step)},
          {"optim/step", example_tensor({}, at::kLong, step)}};
}

// A rank's parts, in memory of their own. To be saved: of the first replica alone, and what all hold of the first rank.
std::vector<TensorEntry> parts_of(const std::vector<TensorEntry>& whole, const World& world, int rank, bool saved) {
  const int64_t n = world.shares(), r = rank % n;
  std::vector<TensorEntry> parts;
  const auto add = [&](const TensorEntry& entry, const std::vector<int64_t>& start, const std::vector<int64_t>& size) {
    at::Tensor part = entry.tensor;
    for (size_t d = 0; d < start.size(); ++d) part = part.narrow(static_cast<int64_t>(d), start[d], size[d]);
    parts.push_back({entry.name, part.clone(at::MemoryFormat::Contiguous), entry.tensor.sizes().vec(), start});
  };
  for (const TensorEntry& entry : whole) {
    const size_t before = parts.size();
    const auto shape = entry.tensor.sizes().vec();
    const auto share = [&](int64_t length) { return std::pair(length * r / n, length * (r + 1) / n); };
    if (saved && (rank >= n || (rank > 0 && (entry.name == "model/norm" || entry.name == "optim/step")))) {
    } else if (entry.name == "model/rows" || entry.name == "model/columns") {
      const size_t d = entry.name == "model/rows" ? 0 : 1;
      const auto [begin, end] = share(shape[d]);
      std::vector<int64_t> start = {0, 0}, size = shape;
      start[d] = begin;
      size[d] = end - begin;
      if (end > begin) add(entry, start, size);
    } else if (entry.name == "optim/flat") {
      const auto [begin, end] = share(entry.tensor.numel());
      for (const Box& box : boxes_of_range(shape, begin, end)) add(entry, box.start, box.size);
    } else {
      parts.push_back({entry.name, entry.tensor.clone()});
    }
    if (parts.size() == before && !shape.empty())
      parts.push_back({entry.name, at::empty({0}, entry.tensor.options()), shape, std::vector<int64_t>(shape.size())});
  }
  return parts;
}

CheckpointState state_of(const World& world, int rank, int64_t step) {
  CheckpointState state = example_state(step);
  if (rank > 0) state.header = {};  // nobody looks at it, but for the step
  state.header.step = step;
  state.tensors = parts_of(whole_tensors(step), world, rank, /*saved=*/true);
  state.mesh = {world.replicas, world.shares(), 1};
  return state;
}

std::vector<TensorEntry> blank_parts(const World& world, int rank) {
  std::vector<TensorEntry> parts = parts_of(whole_tensors(0), world, rank, /*saved=*/false);
  for (TensorEntry& part : parts) part.tensor.fill_(1);
  return parts;
}

void expect_parts(const std::vector<TensorEntry>& parts, const World& world, int rank, int64_t step) {
  const auto expected = parts_of(whole_tensors(step), world, rank, /*saved=*/false);
  ASSERT_EQ(parts.size(), expected.size());
  for (size_t i = 0; i < parts.size(); ++i)
    EXPECT_TRUE(same_bits(parts[i].tensor, expected[i].tensor)) << parts[i].name << ", rank " << rank;
}

void save_on(const World& world, const std::string& folder, int64_t step, int keep_local = 5) {
  on_thread_ranks(world.ranks, kPatience, [&](Communicator& comm) {
    QuickFileSystem files;
    CheckpointStore store(files, folder, keep_local, &comm);
    store.save(state_of(world, comm.rank(), step));
  });
}

// Counts what is read of the HDF5 files.
class DataCountingFileSystem : public QuickFileSystem {
 public:
  std::atomic<int64_t> bytes_read{0};
  int open(const std::string& path, int flags, mode_t mode) override {
    const int descriptor = QuickFileSystem::open(path, flags, mode);
    const std::lock_guard lock(mutex_);
    if (path.ends_with(".h5"))
      data_.insert(descriptor);
    else
      data_.erase(descriptor);
    return descriptor;
  }
  ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset) override {
    const ssize_t count = QuickFileSystem::pread(descriptor, data, size_bytes, offset);
    const std::lock_guard lock(mutex_);
    if (data_.contains(descriptor)) bytes_read += std::max<ssize_t>(count, 0);
    return count;
  }

 private:
  std::mutex mutex_;
  std::set<int> data_;  // guarded by mutex_
};

class Together : public testing::Test {
 protected:
  Together() { set_log_level(LogLevel::kError); }
  ~Together() override { set_log_level(LogLevel::kInfo); }
  TemporaryFolder folder_;
};

TEST_F(Together, AnyNumberOfRanksLoadsWhatAnyNumberSavedAndReadsLittleElse) {
  const std::vector<World> worlds = {{1}, {2}, {3}, {4}, {5}, {6}, {7}, {8}, {2, 2}, {6, 2}, {8, 4}};
  for (const World& saved : worlds) {
    const std::string folder = folder_.path() + "/" + random_tag();
    save_on(saved, folder, 3);
    for (const World& loading : worlds) {
      std::atomic<int64_t> read{0}, needed{0};
      on_thread_ranks(loading.ranks, kPatience, [&](Communicator& comm) {
        DataCountingFileSystem files;
        CheckpointStore store(files, folder, 5, &comm);
        const auto parts = blank_parts(loading, comm.rank());
        const auto loaded = store.load_newest([&](const CheckpointHeader&) { return parts; });
        ASSERT_TRUE(loaded.has_value());
        expect_same_header(loaded->header, example_state(3).header);
        expect_parts(parts, loading, comm.rank(), 3);
        read += files.bytes_read;
        const Manifest manifest = open_checkpoint_folder(files, loaded->path);
        EXPECT_EQ(manifest.files.size(), static_cast<size_t>(saved.shares()) + 1);
        needed += plan_reads(manifest, match_destinations(loaded->path, manifest, parts)).read_bytes;
      });
      EXPECT_LE(static_cast<double>(read), 1.02 * static_cast<double>(needed))
          << saved.ranks << " ranks saved, " << loading.ranks << " load";
    }
  }
}

TEST_F(Together, EveryByteIsVerifiedBySomeone) {
  const World world{3};
  save_on(world, folder_.path(), 1);
  save_on(world, folder_.path(), 2);
  const std::string newest = folder_.path() + "/step_000002";
  QuickFileSystem files;
  for (const FileRecord& file : open_checkpoint_folder(files, newest).files) {
    const std::string path = newest + "/" + file.name;
    const std::string bytes = read_whole_file(files, path, 1 << 30);
    for (const size_t at : {size_t{9}, bytes.size() / 2, bytes.size() - 1}) {
      std::string damaged = bytes;
      damaged[at] = static_cast<char>(damaged[at] ^ 4);
      files.unlink(path);
      write_synced_file(files, path, damaged);
      on_thread_ranks(world.ranks, kPatience, [&](Communicator& comm) {
        QuickFileSystem own;
        CheckpointStore store(own, folder_.path(), 5, &comm);
        const auto parts = blank_parts(world, comm.rank());
        EXPECT_THAT(
            error_text<FormatError>([&] { store.load(newest, [&](const CheckpointHeader&) { return parts; }); }),
            HasSubstr(file.name));
        const auto loaded = store.load_newest([&](const CheckpointHeader&) { return parts; });
        ASSERT_TRUE(loaded.has_value());
        EXPECT_EQ(loaded->header.step, 1);
        expect_parts(parts, world, comm.rank(), 1);
      });
    }
    files.unlink(path);
    write_synced_file(files, path, bytes);
  }
}

// One rank's n-th call fails; all ranks learn it, and what was there stays.
TEST_F(Together, AFailureOfOneRankFailsTheSaveOnAll) {
  const World world{2};
  for (const int broken : {0, 1})
    for (int64_t at = 0;; ++at) {
      const std::string folder = folder_.path() + "/" + random_tag();
      save_on(world, folder, 1);
      std::vector<std::string> errors(2);
      bool fired = false;
      on_thread_ranks(2, kPatience, [&](Communicator& comm) {
        FaultFileSystem files;
        files.fault = comm.rank() == broken ? Fault::kError : Fault::kNone;
        files.fault_at = at;
        files.error = ENOSPC;
        CheckpointStore store(files, folder, 2, &comm);
        try {
          store.save(state_of(world, comm.rank(), 2));
        } catch (const IoError& error) {
          errors[static_cast<size_t>(comm.rank())] = error.what();
        }
        if (comm.rank() == broken) fired = files.fired;
      });
      EXPECT_EQ(errors[0], errors[1]);
      EXPECT_TRUE(errors[0].empty() || errors[0].starts_with(format("rank {}: ", broken))) << errors[0];
      QuickFileSystem files;
      CheckpointStore store(files, folder, 2);
      const auto infos = store.list(CheckDepth::kEveryByte);
      for (const CheckpointInfo& info : infos) EXPECT_TRUE(info.good) << info.why_not;
      ASSERT_FALSE(infos.empty());
      EXPECT_TRUE(infos.front().step == 2 || (infos.front().step == 1 && !errors[0].empty()))
          << "call " << at << " of rank " << broken;
      if (!fired) {
        EXPECT_EQ(infos.front().step, 2);
        EXPECT_GT(at, broken == 0 ? 20 : 3);
        break;
      }
    }
}

TEST_F(Together, AfterOneRanksFailedFsyncAllWriteOnceMore) {
  const World world{3};
  on_thread_ranks(world.ranks, kPatience, [&](Communicator& comm) {
    FaultFileSystem files;
    files.fault = comm.rank() == 2 ? Fault::kError : Fault::kNone;
    files.only = "fsync";
    files.fault_at = 0;
    CheckpointStore store(files, folder_.path(), 2, &comm);
    store.save(state_of(world, comm.rank(), 4));
    EXPECT_EQ(files.fired, comm.rank() == 2);
    const auto parts = blank_parts(world, comm.rank());
    EXPECT_EQ(store.load_newest([&](const CheckpointHeader&) { return parts; })->header.step, 4);
    expect_parts(parts, world, comm.rank(), 4);
  });
}

TEST_F(Together, AnElementOfNobodyOrOfTwoRanksIsNotCommitted) {
  const World world{2};
  for (const bool twice : {false, true}) {
    on_thread_ranks(world.ranks, kPatience, [&](Communicator& comm) {
      QuickFileSystem files;
      CheckpointStore store(files, folder_.path(), 2, &comm);
      CheckpointState state = state_of(world, comm.rank(), 1);
      if (comm.rank() == 1 && twice) state.tensors.push_back({"optim/step", example_tensor({}, at::kLong, 1)});
      if (comm.rank() == 1 && !twice)
        std::erase_if(state.tensors, [](const auto& t) { return t.name == "model/rows"; });
      EXPECT_THAT(error_text<FormatError>([&] { store.save(state); }), HasSubstr(twice ? "optim/step" : "model/rows"));
    });
    EXPECT_TRUE(std::filesystem::is_empty(folder_.path()));
  }
}

TEST_F(Together, OldCheckpointsGoOnceAllRanksHaveReadTheNewOne) {
  const World world{3};
  std::atomic<int> readers{0};
  on_thread_ranks(world.ranks, kPatience, [&](Communicator& comm) {
    DataCountingFileSystem files;
    CheckpointStore store(files, folder_.path(), 2, &comm);
    for (int64_t step = 1; step <= 4; ++step) store.save(state_of(world, comm.rank(), step));
    if (files.bytes_read > 0) ++readers;
  });
  QuickFileSystem files;
  EXPECT_THAT(list_folder(files, folder_.path()), testing::ElementsAre("LATEST", "step_000003", "step_000004"));
  EXPECT_EQ(readers, 3);
}

TEST_F(Together, ReshardedCheckpointsHoldTheSame) {
  QuickFileSystem files;
  save_on({3}, folder_.path() + "/of_three", 4);
  std::string from = folder_.path() + "/of_three/step_000004";
  for (const int num_shards : {1, 4, 2, 8}) {
    const std::string to = format("{}/of_{}/step_000004", folder_.path(), num_shards);
    reshard_checkpoint(files, from, to, num_shards);
    const Manifest manifest = open_checkpoint_folder(files, to);
    EXPECT_EQ(manifest.files.size(), static_cast<size_t>(num_shards) + 1);
    expect_same_header(manifest.header, example_state(4).header);
    CheckpointState whole = example_state(4);
    whole.tensors = whole_tensors(4);
    expect_loads_as(files, to, whole);
    from = to;
  }
  EXPECT_THAT(error_text<IoError>([&] { reshard_checkpoint(files, from, from, 2); }), HasSubstr("exists already"));
}

TEST_F(Together, WhatOneRankAloneSeesComesToTheOthers) {
  save_on({1}, folder_.path() + "/a", 1);
  save_on({1}, folder_.path() + "/b", 2);
  on_thread_ranks(2, kPatience, [&](Communicator& comm) {
    QuickFileSystem files;
    CheckpointStore store(files, folder_.path() + (comm.rank() == 0 ? "/a" : "/b"), 2, &comm);
    const auto parts = blank_parts({2}, comm.rank());
    EXPECT_EQ(store.load_newest([&](const CheckpointHeader&) { return parts; })->header.step, 2);
    expect_parts(parts, {2}, comm.rank(), 2);
  });
  QuickFileSystem files;
  EXPECT_THAT(list_folder(files, folder_.path() + "/a"), testing::ElementsAre("LATEST", "step_000001"));
}

TEST_F(Together, ARankThatRefusesTheCheckpointRefusesItForAll) {
  save_on({2}, folder_.path(), 1);
  on_thread_ranks(2, kPatience, [&](Communicator& comm) {
    QuickFileSystem files;
    CheckpointStore store(files, folder_.path(), 2, &comm);
    const auto refuse = [&](const CheckpointHeader&) -> std::vector<TensorEntry> {
      if (comm.rank() == 1) throw ConfigError("other data");
      return blank_parts({2}, 0);
    };
    EXPECT_EQ(error_text<ConfigError>([&] { store.load_newest(refuse); }), "rank 1: other data");
  });
}

TEST_F(Together, ABugOnOneRankEndsTheOthersToo) {
  on_thread_ranks(2, kPatience, [&](Communicator& comm) {
    const Agreement ranks(&comm);
    const auto fail = [&]() -> std::string {
      if (comm.rank() == 0) throw InvariantError("broken");
      return "";
    };
    if (comm.rank() == 0)
      EXPECT_THROW(ranks.act("test", fail), InvariantError);
    else
      EXPECT_THAT(error_text<CommError>([&] { ranks.act("test", fail); }), HasSubstr("rank 0: broken"));
  });
}

}  // namespace
}  // namespace temper
