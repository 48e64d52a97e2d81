#include "checkpoint/reshard.h"

#include <ATen/ATen.h>

#include "checkpoint/folder.h"

namespace temper {
namespace {

// The part of each tensor that falls to a shard, in memory of its own.
struct ShardParts {
  std::vector<TensorRecord> tensors;  // with this shard's boxes
  std::vector<at::Tensor> memory;
  std::vector<std::vector<const char*>> data;  // [tensor][box]
  std::vector<WantedBox> wanted;
};

ShardParts make_parts(const Manifest& source, int shard, int num_shards) {
  ShardParts parts;
  for (const TensorRecord& tensor : source.tensors) {
    const int64_t elements = num_elements(tensor.shape);
    const auto begin_of = [&](int64_t part) {  // elements * part may be too large
      return elements / num_shards * part + elements % num_shards * part / num_shards;
    };
    parts.tensors.push_back(
        {tensor.name, tensor.dtype, tensor.shape, boxes_of_range(tensor.shape, begin_of(shard), begin_of(shard + 1))});
    parts.data.emplace_back();
    for (const Box& box : parts.tensors.back().boxes) {
      parts.memory.push_back(at::empty(box.size, tensor.dtype));
      auto* bytes = static_cast<char*>(parts.memory.back().data_ptr());
      parts.data.back().push_back(bytes);
      parts.wanted.push_back({&tensor, box.start, box.size, bytes});
    }
  }
  return parts;
}

}  // namespace

void reshard_checkpoint(FileSystem& files, const std::string& from, const std::string& to, int num_shards) {
  if (is_folder(to)) throw IoError("{} exists already. Give another folder, or move it away.", to);
  const Manifest source = open_checkpoint_folder(files, from);
  Manifest manifest;
  manifest.header = source.header;
  manifest.mesh = {1, num_shards, 1};
  for (const TensorRecord& tensor : source.tensors)
    manifest.tensors.push_back({tensor.name, tensor.dtype, tensor.shape, {}});
  AtomicDirectory folder(files, to);
  for (int shard = 0; shard < num_shards; ++shard) {
    ShardParts parts = make_parts(source, shard, num_shards);
    ReadPlan plan = plan_reads(source, parts.wanted);
    add_blocks_between(source, shard, num_shards, &plan);
    const auto problems =
        read_checkpoint_files(files, from, source, std::move(plan), ReadScope::kNeeded, ReadMode::kStopAtFirstProblem);
    if (!problems.empty())
      throw FormatError(
          "checkpoint {} is corrupt: {}. Use another one; `temper checkpoint verify` shows which are whole.", from,
          describe(problems[0]));
    manifest.files.push_back(write_shard(files, folder.path(), shard, parts.tensors, parts.data));
    for (size_t t = 0; t < parts.tensors.size(); ++t)
      for (Box& box : parts.tensors[t].boxes) manifest.tensors[t].boxes.push_back(std::move(box));
  }
  commit_checkpoint_folder(files, folder, to, std::move(manifest));
}

}  // namespace temper
