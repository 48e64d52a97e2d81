// What N ranks wrote, M ranks read: the right bytes, and no block that nobody asked for.
#include "checkpoint/plan.h"

#include <gtest/gtest.h>

#include <atomic>
#include <functional>
#include <set>

#include "checkpoint/folder.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {
namespace {

class CountingFileSystem : public QuickFileSystem {
 public:
  std::atomic<int64_t> bytes_read{0};
  ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset) override {
    const ssize_t count = QuickFileSystem::pread(descriptor, data, size_bytes, offset);
    bytes_read += std::max<ssize_t>(count, 0);
    return count;
  }
};

struct Part {
  int64_t begin, size;
};
// Rank r's part of `length` among n.
using Split = std::function<Part(int64_t length, int64_t n, int64_t r)>;

Part even(int64_t length, int64_t n, int64_t r) { return {length * r / n, length * (r + 1) / n - length * r / n}; }
Part growing(int64_t length, int64_t n, int64_t r) {  // rank r gets about r + 1 shares
  const auto before = [&](int64_t rank) { return length * rank * (rank + 1) / (n * (n + 1)); };
  return {before(r), before(r + 1) - before(r)};
}
Part padded(int64_t length, int64_t n, int64_t r) {  // equal parts of a padded length: the last ranks may have nothing
  const int64_t size = (length + n - 1) / n, begin = std::min(length, r * size);
  return {begin, std::min(size, length - begin)};
}

struct Layout {
  const char* name;
  size_t dim;
  Split split;
};
const std::vector<Layout>& layouts() {
  static const std::vector<Layout> all = {
      {"rows", 0, even}, {"columns", 1, even}, {"uneven rows", 0, growing}, {"padded rows", 0, padded}};
  return all;
}

constexpr int64_t kRows = 13, kColumns = 50021;  // 2.6 MB; one row is no multiple of anything

// Start and size of rank r's box; nothing if it has none.
std::optional<std::pair<std::vector<int64_t>, std::vector<int64_t>>> box_of(const Layout& layout, int64_t n,
                                                                            int64_t r) {
  std::vector<int64_t> start = {0, 0}, size = {kRows, kColumns};
  const Part part = layout.split(size[layout.dim], n, r);
  if (part.size == 0) return std::nullopt;
  start[layout.dim] = part.begin;
  size[layout.dim] = part.size;
  return std::pair(start, size);
}

at::Tensor slice(const at::Tensor& whole, const std::vector<int64_t>& start, const std::vector<int64_t>& size) {
  return whole.narrow(0, start[0], size[0]).narrow(1, start[1], size[1]).contiguous();
}

std::string save_split(FileSystem& files, const std::string& folder, const at::Tensor& whole, const Layout& layout,
                       int64_t n) {
  TensorRecord record{"model/w", at::kFloat, {kRows, kColumns}, {}};
  std::vector<at::Tensor> parts;
  std::vector<const char*> data;
  for (int64_t r = 0; r < n; ++r)
    if (const auto box = box_of(layout, n, r)) {
      parts.push_back(slice(whole, box->first, box->second));
      data.push_back(static_cast<const char*>(parts.back().const_data_ptr()));
      record.boxes.push_back({static_cast<int32_t>(r), 0, box->first, box->second});
    }
  const std::string path = folder + "/step_000009";
  write_checkpoint_folder(files, path, example_state(9).header, Mesh{1, n, 1}, {record}, {data}, static_cast<int>(n));
  return path;
}

// The bytes of all blocks that hold a wanted element, found row by row.
int64_t least_bytes(const Manifest& manifest, const std::vector<WantedBox>& wanted) {
  std::set<std::pair<int32_t, int64_t>> blocks;
  int64_t bytes = 0;
  for (const WantedBox& one : wanted)
    for (const Box& box : manifest.tensors[0].boxes)
      for (int64_t row = one.start[0]; row < one.start[0] + one.size[0]; ++row) {
        const int64_t begin = std::max(one.start[1], box.start[1]);
        const int64_t end = std::min(one.start[1] + one.size[1], box.start[1] + box.size[1]);
        if (row < box.start[0] || row >= box.start[0] + box.size[0] || begin >= end) continue;
        const int64_t of_row = box.offset + (row - box.start[0]) * box.size[1] * 4;
        for (int64_t block = (of_row + (begin - box.start[1]) * 4) / kBlockBytes;
             block * kBlockBytes < of_row + (end - box.start[1]) * 4; ++block)
          if (blocks.insert({box.shard, block}).second)
            bytes +=
                std::min(kBlockBytes, manifest.files[static_cast<size_t>(box.shard)].size_bytes - block * kBlockBytes);
      }
  return bytes;
}

TEST(Plan, AnyNumberOfRanksReadsWhatAnyNumberWroteAndNoBlockMore) {
  const at::Tensor whole = at::arange(kRows * kColumns, at::kInt).view(at::kFloat).view({kRows, kColumns});
  for (const Layout& saved : layouts())
    for (int64_t n = 1; n <= 8; ++n) {
      TemporaryFolder folder;
      CountingFileSystem files;
      const std::string path = save_split(files, folder.path(), whole, saved, n);
      const Manifest manifest = open_checkpoint_folder(files, path);
      for (int64_t m = 1; m <= 8; ++m)
        for (const Layout& read : layouts())
          for (int64_t r = 0; r < m; ++r) {
            if ((n + m + r) % 2 == 0 && &saved != &read) continue;  // half of them, to save time
            const auto box = box_of(read, m, r);
            if (!box) continue;
            const auto& [start, size] = *box;
            const at::Tensor part = at::full(size, -1.0f), replica = at::full(size, -2.0f);
            std::vector<WantedBox> wanted = {{&manifest.tensors[0], start, size, static_cast<char*>(part.data_ptr())}};
            const bool twice = r == 0;  // one of the ranks holds a replica too
            if (twice) wanted.push_back({&manifest.tensors[0], start, size, static_cast<char*>(replica.data_ptr())});
            const ReadPlan plan = plan_reads(manifest, wanted);
            const std::string what = format("saved by {} {}, read by {} {}, rank {}", n, saved.name, m, read.name, r);
            ASSERT_EQ(plan.needed_bytes, static_cast<int64_t>(part.nbytes()) * (twice ? 2 : 1)) << what;
            ASSERT_EQ(plan.read_bytes, least_bytes(manifest, wanted)) << what;
            files.bytes_read = 0;
            ASSERT_TRUE(
                read_checkpoint_files(files, path, manifest, plan, ReadScope::kNeeded, ReadMode::kStopAtFirstProblem)
                    .empty());
            ASSERT_EQ(files.bytes_read, plan.read_bytes) << what;
            const at::Tensor expected = slice(whole, start, size);
            ASSERT_TRUE(same_bits(part, expected)) << what;
            ASSERT_TRUE(!twice || same_bits(replica, expected)) << what;
          }
    }
}

TEST(Plan, ADamagedBlockStopsThoseWhoNeedItAndNobodyElse) {
  const at::Tensor whole = at::ones({kRows, kColumns});
  TemporaryFolder folder;
  ChangedFileSystem files;
  const std::string path = save_split(files, folder.path(), whole, layouts()[0], 1);
  const Manifest manifest = open_checkpoint_folder(files, path);
  const int64_t damaged = manifest.tensors[0].boxes[0].offset + 12 * kColumns * 4;  // the last row's first byte
  files.name = "shard_00000.h5";
  files.change = [&](char* bytes, int64_t offset, int64_t size_bytes) {
    if (offset <= damaged && damaged < offset + size_bytes) bytes[damaged - offset] ^= 1;
  };
  for (int64_t row = 0; row < kRows; ++row) {
    const at::Tensor part = at::empty({1, kColumns});
    const ReadPlan plan =
        plan_reads(manifest, {{&manifest.tensors[0], {row, 0}, {1, kColumns}, static_cast<char*>(part.data_ptr())}});
    bool needs = false;
    for (const BlockRange& range : plan.files[0].blocks)
      needs |= range.begin <= damaged / kBlockBytes && damaged / kBlockBytes < range.end;
    EXPECT_EQ(
        read_checkpoint_files(files, path, manifest, plan, ReadScope::kNeeded, ReadMode::kStopAtFirstProblem).empty(),
        !needs);
    EXPECT_TRUE(row < 12 || needs);
    EXPECT_TRUE(row > 0 || !needs);
  }
}

// Stored: rows 1-2, columns 2-4 of a 4 x 6 matrix; element (r, c) of the matrix is 10 r + c.
TEST(Plan, EachElementComesToItsPlaceInPiecesOfAnyLength) {
  Manifest manifest;
  manifest.files = {{"shard_00000.h5", 100, "", {0}}, {"global.h5", 0, "", {}}};
  manifest.tensors = {{"m", at::kInt, {4, 6}, {{0, 40, {1, 2}, {2, 3}}}}};
  const std::vector<int32_t> contents = {12, 13, 14, 22, 23, 24};
  for (const auto& [start, size] : std::vector<std::pair<std::vector<int64_t>, std::vector<int64_t>>>{
           {{0, 0}, {4, 6}}, {{1, 2}, {2, 3}}, {{2, 0}, {2, 4}}, {{0, 3}, {4, 1}}}) {
    for (int64_t piece = 1; piece <= 24; ++piece) {
      std::vector<int32_t> part(static_cast<size_t>(size[0] * size[1]), -1);
      const ReadPlan plan =
          plan_reads(manifest, {{&manifest.tensors[0], start, size, reinterpret_cast<char*>(part.data())}});
      const char* bytes = reinterpret_cast<const char*>(contents.data());
      for (int64_t begin = 0; begin < 24; begin += piece)
        plan.files[0].copy(40 + begin, 40 + std::min<int64_t>(begin + piece, 24), bytes + begin);
      for (int64_t r = 0; r < size[0]; ++r)
        for (int64_t c = 0; c < size[1]; ++c) {
          const int64_t row = start[0] + r, column = start[1] + c;
          EXPECT_EQ(part[static_cast<size_t>(r * size[1] + c)],
                    row >= 1 && row <= 2 && column >= 2 && column <= 4 ? 10 * row + column : -1);
        }
    }
  }
}

TEST(Plan, BytesGoStraightToTheirPlaceWhereTheyLieTogether) {
  Manifest manifest;
  manifest.files = {{"shard_00000.h5", 200, "", {0}}, {"global.h5", 0, "", {}}};
  manifest.tensors = {{"m", at::kInt, {4, 6}, {{0, 40, {0, 0}, {4, 6}}}}};
  char part[4 * 6 * 4];
  const auto direct = [&](std::vector<int64_t> start, std::vector<int64_t> size, int64_t begin, int64_t end) {
    const char* place = plan_reads(manifest, {{&manifest.tensors[0], start, size, part}}).files[0].direct(begin, end);
    return place == nullptr ? -1 : place - part;
  };
  EXPECT_EQ(direct({0, 0}, {4, 6}, 40, 136), 0);
  EXPECT_EQ(direct({1, 0}, {2, 6}, 70, 90), 6);
  EXPECT_EQ(direct({1, 0}, {2, 6}, 60, 70), -1);    // begins before what is wanted
  EXPECT_EQ(direct({1, 0}, {2, 6}, 100, 120), -1);  // ends behind it
  EXPECT_EQ(direct({0, 2}, {4, 2}, 48, 56), 0);
  EXPECT_EQ(direct({0, 2}, {4, 2}, 72, 80), 8);
  EXPECT_EQ(direct({0, 2}, {4, 2}, 48, 60), -1);  // two rows
}

}  // namespace
}  // namespace temper
