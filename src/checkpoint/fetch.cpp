#include "checkpoint/fetch.h"

#include <algorithm>
#include <optional>

#include "core/log.h"

namespace temper {

void fetch_file(FileSystem& files, const FileRecord& record, const std::string& source, int from,
                const std::string& target, const Agreement& ranks) {
  constexpr int64_t kPieceBytes = int64_t{4} << 20;
  std::optional<File> reading, writing;
  std::string failure;  // of this rank, which goes on: the others wait for its part
  const auto attempt = [&](const auto& action) {
    if (!failure.empty()) return;
    try {
      action();
    } catch (const IoError& error) {
      failure = error.what();
    }
  };
  attempt([&] {
    if (ranks.rank() == from) reading.emplace(File::open(files, source + "/" + record.name));
    if (target.empty()) return;
    make_folders(files, target);
    files.unlink(target + "/" + record.name);
    writing.emplace(File::create(files, target + "/" + record.name));
    writing->reserve(record.size_bytes);
  });
  std::vector<char> piece(static_cast<size_t>(std::min(kPieceBytes, record.size_bytes)));
  for (int64_t offset = 0; offset < record.size_bytes; offset += kPieceBytes) {
    const int64_t size_bytes = std::min(kPieceBytes, record.size_bytes - offset);
    attempt([&] {
      if (reading) reading->read_at(offset, piece.data(), static_cast<size_t>(size_bytes));
    });
    ranks.broadcast("file of a checkpoint", from, piece.data(), size_bytes);
    attempt([&] {
      if (writing) writing->write_at(offset, piece.data(), static_cast<size_t>(size_bytes));
    });
  }
  ranks.act("file received", [&] {
    if (!failure.empty() && !target.empty()) throw IoError("{}", failure);
    if (!failure.empty()) log_warning("{}", failure);
    return std::string();
  });
}

}  // namespace temper
