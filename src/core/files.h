// Small-file input and output: whole reads, atomic writes (never half a file under a final name), read-only mappings,
// the lock of a run directory, appended JSON lines. Errors are IoError with path, reason and fix. (The checkpoint
// writer has its own layer.)
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace temper {

std::string read_file(const std::string& path);
// Writes path.tmp-PID, fsyncs, renames, fsyncs the folder.
void write_file_atomically(const std::string& path, std::string_view bytes);
// IoError where write_file_atomically(path) could not work: for commands that compute long before they write.
void check_can_write(const std::string& path);
void make_directories(const std::string& path);
bool file_exists(const std::string& path);

// A whole file mapped read-only, for as long as the object lives.
class MappedFile {
 public:
  explicit MappedFile(const std::string& path);
  ~MappedFile();
  MappedFile(MappedFile&& other) noexcept;
  MappedFile& operator=(MappedFile&&) = delete;
  const std::byte* data() const { return data_; }
  size_t size_bytes() const { return size_bytes_; }

 private:
  const std::byte* data_ = nullptr;
  size_t size_bytes_ = 0;
};

// Replaces `path` in one go, as above, without waiting for the disk: for what is written all the time and worth nothing
// after the machine went down. False: it could not be written, and what was there stays.
bool replace_file(const std::string& path, std::string_view bytes);

// Who holds a run directory: "host n1 pid 123", inside a Slurm job also its number.
std::string lock_label();

// Holds `path` by flock; writes lock_label() into it. A second holder gets a ConfigError that names the first.
class FileLock {
 public:
  explicit FileLock(const std::string& path);
  ~FileLock();
  FileLock(const FileLock&) = delete;
  FileLock& operator=(const FileLock&) = delete;

 private:
  int descriptor_;
};

// Whether somebody holds a FileLock on `path`. False where there is no such file.
bool is_locked(const std::string& path);

// Appends whole lines with one write(2) each. A failed append (disk full) returns false: the caller counts it and goes
// on.
class LineWriter {
 public:
  // keep_bytes: the file is first cut to this length (resume); -1 keeps all.
  explicit LineWriter(const std::string& path, int64_t keep_bytes = -1);
  ~LineWriter();
  LineWriter(const LineWriter&) = delete;
  LineWriter& operator=(const LineWriter&) = delete;
  bool append(std::string_view line);  // without the newline
  const std::string& path() const { return path_; }

 private:
  std::string path_;
  int descriptor_;
};

}  // namespace temper
