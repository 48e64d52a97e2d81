// How long a reader takes to plan what it reads of a checkpoint that 1,024 ranks wrote, 1,000 tensors in rows: one of
// 1,000 ranks' parts, and everything. On one thread; prints one JSON line each.
#include <cstdio>

#include "checkpoint/plan.h"
#include "core/clock.h"
#include "core/format.h"

namespace temper {
namespace {

constexpr int64_t kWriters = 1024, kReaders = 1000, kTensors = 1000, kRows = 4096, kColumns = 1024;

Manifest many_ranks_manifest() {
  Manifest manifest;
  const int64_t rows = kRows / kWriters, box_bytes = rows * kColumns * 4;
  for (int64_t t = 0; t < kTensors; ++t) {
    TensorRecord tensor{format("model/layer{}.weight", t), at::kFloat, {kRows, kColumns}, {}};
    for (int64_t r = 0; r < kWriters; ++r)
      tensor.boxes.push_back({static_cast<int32_t>(r), 4096 + t * box_bytes, {r * rows, 0}, {rows, kColumns}});
    manifest.tensors.push_back(std::move(tensor));
  }
  for (int64_t r = 0; r < kWriters; ++r)
    manifest.files.push_back({shard_name(static_cast<int>(r)), 4096 + kTensors * box_bytes, "", {}});
  manifest.files.push_back({kGlobalName, 0, "", {}});
  return manifest;
}

void measure(const Manifest& manifest, const char* what, int64_t begin, int64_t end) {
  std::vector<WantedBox> wanted;
  for (const TensorRecord& tensor : manifest.tensors)
    wanted.push_back({&tensor, {begin, 0}, {end - begin, kColumns}, nullptr});
  const Stopwatch watch;
  const ReadPlan plan = plan_reads(manifest, wanted);
  std::printf(
      "{\"bench\": \"checkpoint_plan\", \"what\": \"%s\", \"seconds\": %.4f, \"needed_bytes\": %lld, "
      "\"read_bytes\": %lld}\n",
      what, watch.seconds(), static_cast<long long>(plan.needed_bytes), static_cast<long long>(plan.read_bytes));
}

}  // namespace
}  // namespace temper

int main() {
  using namespace temper;
  const Manifest manifest = many_ranks_manifest();
  for (int i = 0; i < 3; ++i) {
    measure(manifest, "one rank", kRows * 499 / kReaders, kRows * 500 / kReaders);
    measure(manifest, "everything", 0, kRows);
  }
}
