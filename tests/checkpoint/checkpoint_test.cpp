#include "checkpoint/checkpoint.h"

#include <gmock/gmock.h>

#include <filesystem>
#include <fstream>

#include "checkpoint/folder.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<int64_t> steps_of(const CheckpointStore& store) {
  std::vector<int64_t> steps;
  for (const CheckpointInfo& info : store.list(CheckDepth::kEveryByte)) {
    EXPECT_TRUE(info.good) << info.why_not;
    steps.push_back(info.step);
  }
  return steps;
}

void spoil(const std::string& path, int64_t position) {
  ASSERT_LT(position, static_cast<int64_t>(std::filesystem::file_size(path)));
  std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
  file.seekg(position);
  const char byte = static_cast<char>(file.get() ^ 4);
  file.seekp(position);
  file.put(byte);
}

std::string read_text(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  return std::string(std::istreambuf_iterator<char>(in), {});
}

TEST(Checkpoint, WhatIsLoadedEqualsWhatWasSavedBitForBit) {
  TemporaryFolder folder;
  FileSystem files;
  CheckpointStore store(files, folder.path() + "/checkpoints/grpo", 2);
  const CheckpointState state = example_state(120);
  const std::string path = store.save(state);
  EXPECT_EQ(path, folder.path() + "/checkpoints/grpo/step_000120");
  expect_loads_as(files, path, state);
  EXPECT_EQ(read_text(folder.path() + "/checkpoints/grpo/LATEST"), "step_000120\n");
}

TEST(Checkpoint, HoldsEveryDtypeAndShape) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  CheckpointState state = example_state(1);
  const std::vector<std::vector<int64_t>> shapes = {{},     {1},       {7},          {0},     {3, 0, 2},
                                                    {2, 3}, {1, 1, 5}, {2, 1, 3, 2}, {40, 50}};
  for (at::ScalarType dtype : {at::kFloat, at::kBFloat16, at::kHalf, at::kDouble, at::kLong, at::kInt, at::kShort,
                               at::kChar, at::kByte, at::kBool})
    for (size_t i = 0; i < shapes.size(); ++i)
      state.tensors.push_back(
          {format("all/{}/{}", c10::toString(dtype), i), example_tensor(shapes[i], dtype, static_cast<int64_t>(i))});
  expect_loads_as(files, store.save(state), state);
}

TEST(Checkpoint, TensorsOfManyMegabytesAndViewsOfOneBufferComeBack) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  CheckpointState state = example_state(1);
  // 5.7 million elements: 23 MB, so that blocks lie inside tensors, across them, and two threads share the file.
  const at::Tensor flat = at::arange(5700001, at::kInt).view(at::kFloat);
  int64_t begin = 1;
  for (int64_t rows : {1, 1000, 3, 2500, 700, 1496}) {
    state.tensors.push_back(
        {format("model/layer{}.weight", rows), flat.narrow(0, begin, rows * 1000).view({rows, 1000})});
    begin += rows * 1000;
  }
  const std::string path = store.save(state);
  auto destination = at::zeros({5700001}, at::kFloat);
  auto tensors = blank_copy(state.tensors);
  begin = 1;
  for (TensorEntry& entry : tensors)
    if (entry.name.rfind("model/layer", 0) == 0) {
      const auto shape = entry.tensor.sizes().vec();
      entry.tensor = destination.narrow(0, begin, entry.tensor.numel()).view(shape);
      begin += entry.tensor.numel();
    }
  load_checkpoint(files, path, [&](const CheckpointHeader&) { return tensors; });
  EXPECT_TRUE(same_bits(destination.narrow(0, 1, 5700000), flat.narrow(0, 1, 5700000)));
  EXPECT_EQ(destination[0].item<float>(), 0.0f);
}

TEST(Checkpoint, TheSameStateGivesTheSameDataFiles) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore one(files, folder.path() + "/one", 2);
  CheckpointStore two(files, folder.path() + "/two", 2);
  const std::string first = one.save(example_state(3));
  const std::string second = two.save(example_state(3));
  EXPECT_EQ(read_text(first + "/shard_00000.h5"), read_text(second + "/shard_00000.h5"));
  EXPECT_EQ(read_text(first + "/global.h5"), read_text(second + "/global.h5"));
}

// Splits a 7 x 10 matrix into boxes as many ranks would, in `num_shards` files, and reads it back whole.
void expect_split_comes_back(const std::vector<std::vector<int64_t>>& start_size, int num_shards) {
  TemporaryFolder folder;
  QuickFileSystem files;
  const at::Tensor whole = example_tensor({7, 10}, at::kFloat, 5);
  TensorRecord record{"model/w", at::kFloat, {7, 10}, {}};
  std::vector<at::Tensor> parts;
  std::vector<const char*> data;
  for (size_t i = 0; i < start_size.size(); ++i) {
    const auto& s = start_size[i];
    parts.push_back(whole.narrow(0, s[0], s[2]).narrow(1, s[1], s[3]).contiguous());
    data.push_back(static_cast<const char*>(parts.back().const_data_ptr()));
    record.boxes.push_back({static_cast<int32_t>(static_cast<int>(i) % num_shards), 0, {s[0], s[1]}, {s[2], s[3]}});
  }
  CheckpointHeader header = example_state(9).header;
  write_checkpoint_folder(files, folder.path() + "/step_000009", header, Mesh{1, num_shards, 1}, {record}, {data},
                          num_shards);
  at::Tensor loaded = at::zeros({7, 10});
  load_checkpoint(files, folder.path() + "/step_000009", [&](const CheckpointHeader&) {
    return std::vector<TensorEntry>{{"model/w", loaded}};
  });
  EXPECT_TRUE(same_bits(loaded, whole));
}

TEST(Checkpoint, RowColumnAndUnevenSplitsComeBackWhole) {
  expect_split_comes_back({{0, 0, 4, 10}, {4, 0, 3, 10}}, 2);              // rows
  expect_split_comes_back({{0, 0, 7, 3}, {0, 3, 7, 3}, {0, 6, 7, 4}}, 3);  // columns
  expect_split_comes_back({{0, 0, 2, 7}, {0, 7, 5, 3}, {2, 0, 5, 7}, {5, 7, 2, 3}},
                          2);  // a pinwheel, two boxes a shard
}

TEST(Checkpoint, MismatchNamesTensorAndFix) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  const std::string path = store.save(example_state(120));
  const auto load_with = [&](const std::function<void(std::vector<TensorEntry>&)>& change) {
    return error_text<ConfigError>([&] {
      store.load(path, [&](const CheckpointHeader&) {
        auto tensors = blank_copy(example_state(120).tensors);
        change(tensors);
        return tensors;
      });
    });
  };
  EXPECT_EQ(
      load_with([](auto& t) {
        t[0].tensor = at::zeros({8, 3});
      }),
      "checkpoint " + path +
          ": tensor model/embed.weight has 5 rows, this model has 8. Point [model] path at the model it was trained "
          "from, or start afresh with --checkpoint.resume=never.");
  EXPECT_THAT(load_with([](auto& t) {
                t[0].tensor = at::zeros({3, 5});
              }),
              AllOf(HasSubstr("has shape [5, 3], this model has [3, 5]"), HasSubstr("--checkpoint.resume=never")));
  EXPECT_THAT(load_with([](auto& t) { t[1].tensor = at::zeros({3}, at::kHalf); }),
              HasSubstr("tensor model/norm.weight holds f32, this run wants f16"));
  EXPECT_THAT(load_with([](auto& t) { t.pop_back(); }), HasSubstr("tensor optim/step [] has no place in this run"));
  EXPECT_THAT(load_with([](auto& t) {
                t.push_back({"critic/head", at::zeros({2})});
              }),
              HasSubstr("tensor critic/head [2] of this run is not in it (1 are missing)"));
}

TEST(Checkpoint, NamesThatCannotBePathsAreRefused) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  for (const char* name : {"", "/model", "model/", "a//b", "../a", "a/./b", "a b", "a#1", "a\nb"}) {
    CheckpointState state = example_state(1);
    state.tensors[0].name = name;
    EXPECT_THAT(error_text<ConfigError>([&] { store.save(state); }), HasSubstr("Rename it")) << name;
  }
  CheckpointState state = example_state(1);
  state.tensors[0].name = "model/norm.weight/bias";
  EXPECT_THAT(error_text<ConfigError>([&] { store.save(state); }), HasSubstr("model/norm.weight is a tensor too"));
  EXPECT_TRUE(std::filesystem::is_empty(folder.path()));
}

TEST(CheckpointStore, NewestThatVerifiesIsLoadedAndTheDestinationsAreAskedWithItsHeader) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 5);
  for (int64_t step : {10, 20, 30}) store.save(example_state(step));
  spoil(folder.path() + "/step_000030/shard_00000.h5", 2100);
  std::filesystem::remove(folder.path() + "/step_000020/COMMITTED");
  const auto tensors = blank_copy(example_state(10).tensors);
  std::vector<int64_t> asked;
  const auto loaded = store.load_newest([&](const CheckpointHeader& header) {
    asked.push_back(header.step);
    return tensors;
  });
  ASSERT_TRUE(loaded.has_value());
  EXPECT_EQ(loaded->path, folder.path() + "/step_000010");
  EXPECT_THAT(asked, ElementsAre(30, 10));
  EXPECT_TRUE(same_bits(tensors[0].tensor, example_state(10).tensors[0].tensor));
}

TEST(CheckpointStore, NothingIsLoadedFromAnEmptyOrMissingFolder) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path() + "/not/there", 2);
  EXPECT_FALSE(store.load_newest([](const CheckpointHeader&) { return std::vector<TensorEntry>(); }).has_value());
  EXPECT_TRUE(store.list().empty());
}

TEST(CheckpointStore, AllCorruptIsAnErrorNotAFreshStart) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  const std::string path = store.save(example_state(1));
  spoil(path + "/manifest.json", 30);
  EXPECT_THAT(error_text<FormatError>(
                  [&] { store.load_newest([](const CheckpointHeader&) { return std::vector<TensorEntry>(); }); }),
              AllOf(HasSubstr("none of its 1 checkpoints verifies"), HasSubstr("manifest.json"),
                    HasSubstr("--checkpoint.resume=never")));
}

TEST(CheckpointStore, KeepsTheNewestAndDeletesOlderOnes) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 3);
  for (int64_t step = 1; step <= 6; ++step) store.save(example_state(step));
  EXPECT_THAT(steps_of(store), ElementsAre(6, 5, 4));
}

TEST(CheckpointStore, CorruptOnesDoNotPushOutTheLastVerified) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore(files, folder.path(), 2).save(example_state(1));
  CheckpointStore(files, folder.path(), 2).save(example_state(2));
  spoil(folder.path() + "/step_000002/shard_00000.h5", 2100);
  CheckpointStore store(files, folder.path(), 2);
  store.save(example_state(3));
  EXPECT_TRUE(is_folder(folder.path() + "/step_000001"));  // 3 and 1 verify, 2 does not
  store.save(example_state(4));
  EXPECT_FALSE(is_folder(folder.path() + "/step_000001"));
  EXPECT_TRUE(is_folder(folder.path() + "/step_000003"));
}

TEST(CheckpointStore, DeletesNothingIfTheNewOneReadsBackDifferently) {
  TemporaryFolder folder;
  ChangedFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  store.save(example_state(1));
  store.save(example_state(2));
  files.name = "shard_00000.h5";
  files.change = [](char* bytes, int64_t, int64_t size_bytes) { bytes[size_bytes / 2] ^= 1; };
  EXPECT_THAT(error_text<IoError>([&] { store.save(example_state(3)); }), HasSubstr("reads back differently"));
  EXPECT_TRUE(is_folder(folder.path() + "/step_000001"));
}

TEST(CheckpointStore, SavingAStepAgainReplacesIt) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  store.save(example_state(4));
  CheckpointState other = example_state(4);
  other.tensors[1].tensor = at::ones({3});
  expect_loads_as(files, store.save(other), other);
  EXPECT_THAT(list_folder(files, folder.path()), ElementsAre("LATEST", "step_000004"));
}

TEST(CheckpointStore, UnfinishedFoldersAreNotCheckpointsAndAreCleaned) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 2);
  store.save(example_state(4));
  std::filesystem::copy(folder.path() + "/step_000004", folder.path() + "/step_000009.tmp-0123456789abcdef");
  EXPECT_THAT(steps_of(store), ElementsAre(4));
  EXPECT_THAT(error_text<FormatError>(
                  [&] { read_checkpoint_header(files, folder.path() + "/step_000009.tmp-0123456789abcdef"); }),
              HasSubstr("an unfinished save"));
  store.remove_stale();
  EXPECT_THAT(list_folder(files, folder.path()), ElementsAre("LATEST", "step_000004"));
}

TEST(CheckpointStore, LaterStepsOfAnAbandonedCourseAreSetAside) {
  TemporaryFolder folder;
  QuickFileSystem files;
  CheckpointStore store(files, folder.path(), 5);
  for (int64_t step : {10, 20, 30}) store.save(example_state(step));
  store.set_aside_newer_than(10);
  EXPECT_THAT(steps_of(store), ElementsAre(10));
  EXPECT_EQ(list_folder(files, folder.path()).size(), 4u);  // nothing is deleted: LATEST and three folders
}

}  // namespace
}  // namespace temper
