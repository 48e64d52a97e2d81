#include "checkpoint/copy.h"

#include <algorithm>
#include <optional>

#include "checkpoint/folder.h"
#include "core/hash.h"

namespace temper {
namespace {

void copy_data_file(FileSystem& files, const std::string& from, const std::string& to, const FileRecord& record) {
  constexpr size_t kWritebackBlocks = 32;
  const File source = File::open(files, from + "/" + record.name);
  File target = File::create(files, to + "/" + record.name);
  target.reserve(record.size_bytes);
  std::vector<char> block(kBlockBytes);
  for (size_t i = 0; i < record.blocks.size(); ++i) {
    const int64_t offset = static_cast<int64_t>(i) * kBlockBytes;
    const auto size_bytes = static_cast<size_t>(std::min(kBlockBytes, record.size_bytes - offset));
    if (source.read_at(offset, block.data(), size_bytes) != size_bytes ||
        xxh3_64(block.data(), size_bytes) != record.blocks[i])
      throw FormatError("checkpoint {} is corrupt: {}, block {} of 1 MiB is not what was written. It is not copied.",
                        from, record.name, i);
    target.write_at(offset, block.data(), size_bytes);
    if ((i + 1) % kWritebackBlocks == 0)
      files.start_writeback(target.descriptor(), offset + kBlockBytes - kWritebackBlocks * kBlockBytes,
                            kWritebackBlocks * kBlockBytes);
  }
  target.sync();
  target.close();
}

// The rank that copies a file: one of those that have it, in turn.
int copier_of(size_t file, const std::vector<std::string>& held) {
  std::vector<int> holders;
  for (size_t rank = 0; rank < held.size(); ++rank)
    if (held[rank][file] == '1') holders.push_back(static_cast<int>(rank));
  return holders.empty() ? -1 : holders[file % holders.size()];
}

}  // namespace

void copy_together(FileSystem& files, const std::string& from, const std::string& to, const Agreement& ranks) {
  FolderPart part;
  const auto held = ranks.act("files to be copied", [&] {
    part = open_folder_part(files, from);
    std::string bits;
    for (const std::string& wrong : part.wrong) bits += wrong.empty() ? '1' : '0';
    return bits;
  });
  const auto identities = ranks.tell("checkpoint to be copied", part.identity());
  if (std::count(identities.begin(), identities.end(), identities[0]) != static_cast<int64_t>(identities.size()))
    throw IoError("checkpoint {}: the ranks see different checkpoints under this name. It is not copied.", from);
  std::optional<AtomicDirectory> folder;  // the first rank's
  const auto begun = ranks.act("copy begun", [&] {
    if (!ranks.leads()) return std::string();
    folder.emplace(files, to);
    return folder->path();
  });
  ranks.act("files copied", [&] {
    for (size_t i = 0; i < part.manifest.files.size(); ++i) {
      const int copier = copier_of(i, held);
      if (copier < 0)
        throw FormatError("checkpoint {}: {} is on no rank's disk. It is not copied.", from,
                          part.manifest.files[i].name);
      if (copier == ranks.rank()) copy_data_file(files, from, begun[0], part.manifest.files[i]);
    }
    return std::string();
  });
  ranks.act("copy committed", [&] {
    if (!ranks.leads()) return std::string();
    write_synced_file(files, folder->path() + "/" + kManifestName, part.text);
    write_synced_file(files, folder->path() + "/" + kCommittedName, "");
    folder->commit();
    return std::string();
  });
}

}  // namespace temper
