// A checkpoint of each format version that was ever released, in tests/checkpoint/data: it must load for ever.
// To write the current version's: TEMPER_GOLDEN_OUT=DIR checkpoint_test --gtest_filter=GoldenCheckpoint.* (once a
// version).
#include <gmock/gmock.h>

#include <cstdlib>

#include "checkpoint/folder.h"
#include "checkpoint/inspect.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

CheckpointHeader golden_header() {
  CheckpointHeader header = example_state(7).header;
  header.time = 1700000000.5;
  return header;
}

// Values that need no library to write down: element i of a tensor is (i + offset) / 4.
at::Tensor quarters(at::IntArrayRef shape, double offset, at::ScalarType dtype) {
  const at::Tensor values = (at::arange(c10::multiply_integers(shape), at::kDouble) + offset) / 4;
  return values.to(dtype).view(shape).contiguous();
}

// Two shards: rows 0-2 and columns of rows 3-4 of one matrix, and a tensor of each further kind.
std::vector<TensorEntry> golden_tensors() {
  return {{"model/embed.weight", quarters({5, 6}, -3, at::kFloat)},
          {"model/norm.weight", quarters({4}, 2, at::kBFloat16)},
          {"optim/exp_avg/embed.weight", quarters({3}, 1, at::kHalf)},
          {"optim/step", at::scalar_tensor(7, at::kLong)},
          {"optim/empty", at::empty({0, 3}, at::kFloat)},
          {"critic/mask", quarters({3}, -4, at::kBool)}};
}

void write_golden(const std::string& path) {
  FileSystem files;
  std::vector<TensorRecord> records;
  std::vector<at::Tensor> parts;
  std::vector<std::vector<const char*>> data;
  for (const TensorEntry& entry : golden_tensors()) {
    TensorRecord record{entry.name, entry.tensor.scalar_type(), entry.tensor.sizes().vec(), {}};
    data.emplace_back();
    const auto add = [&](const at::Tensor& part, int shard, std::vector<int64_t> start) {
      parts.push_back(part.contiguous());
      record.boxes.push_back({shard, 0, std::move(start), part.sizes().vec()});
      data.back().push_back(static_cast<const char*>(parts.back().const_data_ptr()));
    };
    if (entry.name == "model/embed.weight") {
      add(entry.tensor.narrow(0, 0, 3), 0, {0, 0});
      add(entry.tensor.narrow(0, 3, 2).narrow(1, 0, 2), 1, {3, 0});
      add(entry.tensor.narrow(0, 3, 2).narrow(1, 2, 4), 1, {3, 2});
    } else if (entry.tensor.numel() > 0) {
      add(entry.tensor, 1, std::vector<int64_t>(record.shape.size(), 0));
    }
    records.push_back(std::move(record));
  }
  write_checkpoint_folder(files, path, golden_header(), Mesh{1, 2, 1}, records, data, 2);
}

void expect_golden(const std::string& path) {
  FileSystem files;
  const auto wanted = golden_tensors();
  const auto tensors = blank_copy(wanted);
  const LoadedCheckpoint loaded = load_checkpoint(files, path, [&](const CheckpointHeader&) { return tensors; });
  expect_same_header(loaded.header, golden_header());
  EXPECT_EQ(loaded.header.time, 1700000000.5);
  for (size_t i = 0; i < wanted.size(); ++i)
    EXPECT_TRUE(same_bits(tensors[i].tensor, wanted[i].tensor)) << wanted[i].name;
}

TEST(GoldenCheckpoint, OfFormatVersion1Loads) { expect_golden(TEMPER_TEST_DATA "/format_1/step_000007"); }

TEST(GoldenCheckpoint, WrittenTodayLoads) {
  TemporaryFolder folder;
  const char* out = std::getenv("TEMPER_GOLDEN_OUT");
  const std::string path = (out != nullptr ? std::string(out) : folder.path()) + "/step_000007";
  write_golden(path);
  expect_golden(path);
}

}  // namespace
}  // namespace temper
