// The seam under which every byte of a checkpoint passes to the disk: one virtual function a system call, with the
// system's own contract (-1 and errno on failure), so that tests can fail, shorten or cut off each call. `File` and the
// free functions below add what every caller needs: loops over short transfers and EINTR, and IoError with path, reason
// and fix. Stateless apart from descriptors; any thread may use one FileSystem, one thread at a time a File.
#pragma once
#include <sys/stat.h>
#include <sys/types.h>

#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "core/error.h"

namespace temper {

class FileSystem {
 public:
  virtual ~FileSystem() = default;
  virtual int open(const std::string& path, int flags, mode_t mode);
  virtual int close(int descriptor);
  virtual ssize_t pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset);
  virtual ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset);
  virtual int reserve(int descriptor, int64_t size_bytes);  // fallocate: disk space for [0, size_bytes), file size set
  virtual int truncate(int descriptor, int64_t size_bytes);
  virtual int fsync(int descriptor);
  virtual int stat(int descriptor, struct stat* status);
  virtual int rename(const std::string& from, const std::string& to);
  virtual int exchange(const std::string& one, const std::string& other);  // both names at once (renameat2)
  virtual int unlink(const std::string& path);
  virtual int remove_folder(const std::string& path);
  virtual int make_folder(const std::string& path);
  // Names in the folder without "." and "..", sorted.
  virtual int list(const std::string& folder, std::vector<std::string>* names);
  // Hints, which cannot fail in a way that matters.
  virtual void start_writeback(int descriptor, int64_t offset, int64_t size_bytes);
  virtual void drop_cache(int descriptor);
};

// The kernel said that what was written may be lost: the file must be rewritten under a new name, never synced again.
class SyncError : public IoError {
  using IoError::IoError;
};

// An open file. Every operation loops until done and throws IoError. The destructor closes what close() has not.
class File {
 public:
  // A new file; IoError if the name exists.
  static File create(FileSystem& files, const std::string& path);
  // An existing regular file for reading; symbolic links are refused.
  static File open(FileSystem& files, const std::string& path);
  ~File();
  File(File&& other) noexcept;
  File& operator=(File&&) = delete;

  void reserve(int64_t size_bytes);  // disk space first, so that a full disk shows before the first byte
  void write_at(int64_t offset, const void* data, size_t size_bytes);
  // Fewer bytes than asked for only at the end of the file.
  size_t read_at(int64_t offset, void* data, size_t size_bytes) const;
  void sync();
  void close();
  int64_t size_bytes() const;
  const std::string& path() const { return path_; }
  int descriptor() const { return descriptor_; }

 private:
  File(FileSystem& files, std::string path, int descriptor);
  FileSystem* files_;
  std::string path_;
  int descriptor_;
};

void write_synced_file(FileSystem& files, const std::string& path, std::string_view bytes);
// Refuses more than max_bytes before it allocates.
std::string read_whole_file(FileSystem& files, const std::string& path, int64_t max_bytes);
std::vector<std::string> list_folder(FileSystem& files, const std::string& path);  // empty if there is no such folder
void make_folders(FileSystem& files, const std::string& path);
void sync_folder(FileSystem& files, const std::string& path);
void remove_tree(FileSystem& files, const std::string& path);
bool is_folder(const std::string& path);
std::string parent_folder(const std::string& path);
std::string base_name(const std::string& path);
std::string random_tag();  // 16 hexadecimal digits, different at each call

}  // namespace temper
