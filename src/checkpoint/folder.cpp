#include "checkpoint/folder.h"

#include <algorithm>

namespace temper {
namespace {

bool contains(const std::vector<std::string>& sorted_names, const std::string& name) {
  return std::binary_search(sorted_names.begin(), sorted_names.end(), name);
}

}  // namespace

FileRecord write_shard(FileSystem& files, const std::string& folder, int shard, std::vector<TensorRecord>& tensors,
                       const std::vector<std::vector<const char*>>& data) {
  TEMPER_CHECK(data.size() == tensors.size(), "{} tensors, data of {}", tensors.size(), data.size());
  std::vector<ShardPiece> layout;
  std::vector<WritePiece> pieces;
  std::vector<Box*> boxes;
  for (size_t t = 0; t < tensors.size(); ++t) {
    for (Box& box : tensors[t].boxes) box.shard = shard;
    const auto names = piece_names(tensors[t]);
    for (size_t b = 0; b < tensors[t].boxes.size(); ++b) {
      Box& box = tensors[t].boxes[b];
      layout.push_back({names[b], tensors[t].dtype, box.size, tensors[t].shape, box.start});
      pieces.push_back({&tensors[t], &box, data[t][b]});
      boxes.push_back(&box);
    }
  }
  const Hdf5Skeleton skeleton = make_shard_skeleton(layout);
  for (size_t i = 0; i < boxes.size(); ++i) boxes[i]->offset = skeleton.offsets[i];
  return write_data_file(files, folder, shard_name(shard), skeleton, pieces);
}

std::string complete_checkpoint_folder(FileSystem& files, AtomicDirectory& folder, const std::string& path,
                                       Manifest manifest) {
  manifest.writer = std::string("temper ") + TEMPER_VERSION;
  manifest.files.push_back(
      write_data_file(files, folder.path(), kGlobalName, make_global_skeleton(manifest.tensors), {}));
  const std::string text = encode_manifest(manifest);
  // What cannot be read back (a hole in the coverage) is not committed.
  parse_manifest(text, path + "/" + kManifestName);
  write_synced_file(files, folder.path() + "/" + kManifestName, text);
  write_synced_file(files, folder.path() + "/" + kCommittedName, "");
  return text;
}

void complete_folder_part(FileSystem& files, const AtomicDirectory& folder, const FileRecord& global,
                          const std::string& manifest_text) {
  File file = File::open(files, folder.path() + "/" + global.name);
  file.sync();
  file.close();
  const auto problems = read_data_file(files, folder.path(), global, whole_file(global), ReadMode::kStopAtFirstProblem);
  if (!problems.empty()) throw IoError("{}/{}. Check the disk.", folder.path(), describe(problems[0]));
  write_synced_file(files, folder.path() + "/" + kManifestName, manifest_text);
  write_synced_file(files, folder.path() + "/" + kCommittedName, "");
}

void commit_checkpoint_folder(FileSystem& files, AtomicDirectory& folder, const std::string& path, Manifest manifest) {
  complete_checkpoint_folder(files, folder, path, std::move(manifest));
  folder.commit();
}

void write_checkpoint_folder(FileSystem& files, const std::string& path, const CheckpointHeader& header,
                             const Mesh& mesh, std::vector<TensorRecord> tensors,
                             const std::vector<std::vector<const char*>>& data, int num_shards) {
  Manifest manifest;
  manifest.header = header;
  manifest.mesh = mesh;
  AtomicDirectory folder(files, path);
  for (int shard = 0; shard < num_shards; ++shard) {
    std::vector<TensorRecord> here = tensors;
    std::vector<std::vector<const char*>> bytes(tensors.size());
    std::vector<Box*> boxes;  // of the shard, in the order of `here`
    for (size_t t = 0; t < tensors.size(); ++t) {
      here[t].boxes.clear();
      for (size_t b = 0; b < tensors[t].boxes.size(); ++b) {
        if (tensors[t].boxes[b].shard != shard) continue;
        boxes.push_back(&tensors[t].boxes[b]);
        here[t].boxes.push_back(tensors[t].boxes[b]);
        bytes[t].push_back(data[t][b]);
      }
    }
    manifest.files.push_back(write_shard(files, folder.path(), shard, here, bytes));
    auto box = boxes.begin();
    for (const TensorRecord& tensor : here)
      for (const Box& placed : tensor.boxes) (*box++)->offset = placed.offset;
  }
  manifest.tensors = std::move(tensors);
  commit_checkpoint_folder(files, folder, path, std::move(manifest));
}

FolderPart open_folder_part(FileSystem& files, const std::string& path) {
  const std::string name = base_name(path);
  if (!is_folder(path))
    throw IoError("{}: there is no such folder. `temper checkpoint ls` shows the checkpoints of a run.", path);
  if (name.find(".tmp-") != std::string::npos)
    throw FormatError("{}: an unfinished save, not a checkpoint. Use another one.", path);
  const auto names = list_folder(files, path);
  if (!contains(names, kCommittedName))
    throw FormatError("{}: {} is missing, so the save was never finished. Use another checkpoint.", path,
                      kCommittedName);
  if (!contains(names, kManifestName))
    throw FormatError("{}: {} is missing. Use another checkpoint.", path, kManifestName);
  const std::string manifest_path = path + "/" + kManifestName;
  FolderPart part;
  part.text = read_whole_file(files, manifest_path, kMaxManifestBytes);
  part.manifest = parse_manifest(part.text, manifest_path);
  const Manifest& manifest = part.manifest;
  if (name.compare(0, 5, "step_") == 0 && name != step_name(manifest.header.step))
    throw FormatError("{}: holds step {}, so its name should be {}. Use another checkpoint.", path,
                      manifest.header.step, step_name(manifest.header.step));
  if (File::open(files, path + "/" + kCommittedName).size_bytes() != 0)
    throw FormatError("{}: {} is not empty. Use another checkpoint.", path, kCommittedName);
  for (const FileRecord& record : manifest.files) {
    part.wrong.emplace_back();
    if (!contains(names, record.name)) {
      part.wrong.back() = format("{} is missing", record.name);
      continue;
    }
    const int64_t size_bytes = File::open(files, path + "/" + record.name).size_bytes();
    if (size_bytes != record.size_bytes)
      part.wrong.back() = format("{} has {} bytes, {} were written", record.name, size_bytes, record.size_bytes);
  }
  return part;
}

std::string FolderPart::identity() const {  // the checksum at the manifest's end
  constexpr size_t kDigits = 32, kTail = 2;
  return text.substr(text.size() - kDigits - kTail, kDigits);
}

Manifest open_checkpoint_folder(FileSystem& files, const std::string& path) {
  FolderPart part = open_folder_part(files, path);
  for (const std::string& wrong : part.wrong) {
    if (wrong.empty()) continue;
    if (part.manifest.mesh.nodes > 1)
      throw FormatError("{}: {}; the files are spread over {} nodes. Copy the nodes' folders of this step into one.",
                        path, wrong, part.manifest.mesh.nodes);
    throw FormatError("{}: {}. Use another checkpoint.", path, wrong);
  }
  return std::move(part.manifest);
}

std::vector<Damage> read_checkpoint_files(FileSystem& files, const std::string& path, const Manifest& manifest,
                                          ReadPlan plan, ReadScope scope, ReadMode mode, bool from_disk) {
  plan.files.resize(manifest.files.size());
  std::vector<Damage> problems;
  for (size_t i = 0; i < manifest.files.size(); ++i) {
    if (scope == ReadScope::kEverything) plan.files[i].blocks = whole_file(manifest.files[i]).blocks;
    if (plan.files[i].blocks.empty()) continue;
    auto found = read_data_file(files, path, manifest.files[i], plan.files[i], mode, from_disk);
    problems.insert(problems.end(), found.begin(), found.end());
    if (!problems.empty() && mode == ReadMode::kStopAtFirstProblem) break;
  }
  return problems;
}

std::vector<int64_t> find_steps(FileSystem& files, const std::string& directory) {
  std::vector<int64_t> steps;
  for (const std::string& name : list_folder(files, directory))
    if (const int64_t step = parse_step_name(name); step >= 0 && is_folder(directory + "/" + name))
      steps.push_back(step);
  std::sort(steps.rbegin(), steps.rend());
  return steps;
}

}  // namespace temper
