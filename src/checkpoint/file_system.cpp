#include "checkpoint/file_system.h"

#include <dirent.h>
#include <fcntl.h>
#include <sys/statvfs.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <random>

#include "core/hash.h"

namespace temper {
namespace {

std::string reason(int error) { return std::strerror(error); }

// What a person can do about it, by kind of failure.
std::string fix_for(int error) {
  switch (error) {
    case ENOSPC:
    case EDQUOT:
      return "Free some space, keep fewer checkpoints (--checkpoint.keep_local) or choose another folder "
             "(--checkpoint.local_dir).";
    case EACCES:
    case EPERM:
    case EROFS:
      return "Check the folder's owner and permissions.";
    case EMFILE:
    case ENFILE:
      return "Raise the limit of open files (ulimit -n).";
    case ENOENT:
    case ENOTDIR:
      return "Check the path.";
    case ELOOP:
      return "Put the file itself there, not a symbolic link.";
    default:
      return "Check the disk and the kernel's log (dmesg).";
  }
}

// A single transfer above 2 GiB is cut by Linux anyway.
constexpr size_t kMaxTransferBytes = size_t{1} << 30;

std::string space_left(const std::string& path) {
  struct statvfs status {};
  if (::statvfs(parent_folder(path).c_str(), &status) != 0) return "unknown";
  return format("{}", static_cast<uint64_t>(status.f_bavail) * status.f_frsize);
}

}  // namespace

int FileSystem::open(const std::string& path, int flags, mode_t mode) { return ::open(path.c_str(), flags, mode); }
int FileSystem::close(int descriptor) { return ::close(descriptor); }
ssize_t FileSystem::pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) {
  return ::pwrite(descriptor, data, size_bytes, offset);
}
ssize_t FileSystem::pread(int descriptor, void* data, size_t size_bytes, int64_t offset) {
  return ::pread(descriptor, data, size_bytes, offset);
}
int FileSystem::reserve(int descriptor, int64_t size_bytes) { return ::fallocate(descriptor, 0, 0, size_bytes); }
int FileSystem::truncate(int descriptor, int64_t size_bytes) { return ::ftruncate(descriptor, size_bytes); }
int FileSystem::fsync(int descriptor) { return ::fsync(descriptor); }
int FileSystem::stat(int descriptor, struct stat* status) { return ::fstat(descriptor, status); }
int FileSystem::rename(const std::string& from, const std::string& to) { return ::rename(from.c_str(), to.c_str()); }
int FileSystem::exchange(const std::string& one, const std::string& other) {
  constexpr unsigned int kRenameExchange = 2;  // RENAME_EXCHANGE of linux/fs.h
  return static_cast<int>(::syscall(SYS_renameat2, AT_FDCWD, one.c_str(), AT_FDCWD, other.c_str(), kRenameExchange));
}
int FileSystem::unlink(const std::string& path) { return ::unlink(path.c_str()); }
int FileSystem::remove_folder(const std::string& path) { return ::rmdir(path.c_str()); }
int FileSystem::make_folder(const std::string& path) { return ::mkdir(path.c_str(), 0755); }

int FileSystem::list(const std::string& folder, std::vector<std::string>* names) {
  DIR* stream = ::opendir(folder.c_str());
  if (stream == nullptr) return -1;
  names->clear();
  errno = 0;
  while (const dirent* entry = ::readdir(stream)) {
    const std::string name = entry->d_name;
    if (name != "." && name != "..") names->push_back(name);
  }
  const int error = errno;
  ::closedir(stream);
  std::sort(names->begin(), names->end());
  errno = error;
  return error == 0 ? 0 : -1;
}

void FileSystem::start_writeback(int descriptor, int64_t offset, int64_t size_bytes) {
  ::sync_file_range(descriptor, offset, size_bytes, SYNC_FILE_RANGE_WRITE);
}
void FileSystem::drop_cache(int descriptor) { ::posix_fadvise(descriptor, 0, 0, POSIX_FADV_DONTNEED); }

File::File(FileSystem& files, std::string path, int descriptor)
    : files_(&files), path_(std::move(path)), descriptor_(descriptor) {}

File::File(File&& other) noexcept
    : files_(other.files_), path_(std::move(other.path_)), descriptor_(other.descriptor_) {
  other.descriptor_ = -1;
}

File::~File() {
  if (descriptor_ >= 0) files_->close(descriptor_);
}

namespace {

int open_retrying(FileSystem& files, const std::string& path, int flags) {
  int descriptor;
  do {
    descriptor = files.open(path, flags, 0644);
  } while (descriptor < 0 && errno == EINTR);
  return descriptor;
}

}  // namespace

File File::create(FileSystem& files, const std::string& path) {
  const int descriptor = open_retrying(files, path, O_RDWR | O_CREAT | O_EXCL | O_CLOEXEC);
  if (descriptor < 0) throw IoError("{}: cannot be created ({}). {}", path, reason(errno), fix_for(errno));
  return File(files, path, descriptor);
}

File File::open(FileSystem& files, const std::string& path) {
  // O_NONBLOCK: a pipe of that name must not hang the reader; it has no effect on regular files.
  const int descriptor = open_retrying(files, path, O_RDONLY | O_NOFOLLOW | O_NONBLOCK | O_CLOEXEC);
  if (descriptor < 0) throw IoError("{}: cannot be opened ({}). {}", path, reason(errno), fix_for(errno));
  File file(files, path, descriptor);
  struct stat status {};
  if (files.stat(descriptor, &status) != 0)
    throw IoError("{}: cannot be examined ({}). {}", path, reason(errno), fix_for(errno));
  if (!S_ISREG(status.st_mode)) throw IoError("{}: is not a regular file. Put the file itself there.", path);
  return file;
}

void File::reserve(int64_t size_bytes) {
  if (size_bytes == 0) return;
  int result;
  do {
    result = files_->reserve(descriptor_, size_bytes);
  } while (result != 0 && errno == EINTR);
  // Some file systems cannot reserve; there a full disk shows while writing.
  if (result != 0 && errno == EOPNOTSUPP) result = files_->truncate(descriptor_, size_bytes);
  if (result != 0) {
    const int error = errno;
    throw IoError("{}: {} bytes cannot be reserved ({}; {} bytes are free). {}", path_, size_bytes, reason(error),
                  space_left(path_), fix_for(error));
  }
}

void File::write_at(int64_t offset, const void* data, size_t size_bytes) {
  const char* bytes = static_cast<const char*>(data);
  size_t done = 0;
  while (done < size_bytes) {
    const size_t want = std::min(size_bytes - done, kMaxTransferBytes);
    const ssize_t written = files_->pwrite(descriptor_, bytes + done, want, offset + static_cast<int64_t>(done));
    if (written < 0 && errno == EINTR) continue;
    if (written <= 0) {
      const int error = written < 0 ? errno : ENOSPC;  // no progress and no reason: a full disk
      throw IoError("{}: writing {} bytes at byte {} failed ({}; {} bytes are free). {}", path_, want,
                    offset + static_cast<int64_t>(done), reason(error), space_left(path_), fix_for(error));
    }
    done += static_cast<size_t>(written);
  }
}

size_t File::read_at(int64_t offset, void* data, size_t size_bytes) const {
  char* bytes = static_cast<char*>(data);
  size_t done = 0;
  while (done < size_bytes) {
    const size_t want = std::min(size_bytes - done, kMaxTransferBytes);
    const ssize_t count = files_->pread(descriptor_, bytes + done, want, offset + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count < 0)
      throw IoError("{}: reading {} bytes at byte {} failed ({}). {}", path_, want, offset + static_cast<int64_t>(done),
                    reason(errno), fix_for(errno));
    if (count == 0) break;
    done += static_cast<size_t>(count);
  }
  return done;
}

void File::sync() {
  int result;
  do {
    result = files_->fsync(descriptor_);
  } while (result != 0 && errno == EINTR);
  if (result != 0)
    throw SyncError("{}: fsync failed ({}), so what was written may be lost. {}", path_, reason(errno), fix_for(errno));
}

void File::close() {
  const int descriptor = descriptor_;
  descriptor_ = -1;  // on Linux the descriptor is gone whatever close says, EINTR included
  if (files_->close(descriptor) != 0 && errno != EINTR)
    throw IoError("{}: closing failed ({}). {}", path_, reason(errno), fix_for(errno));
}

int64_t File::size_bytes() const {
  struct stat status {};
  if (files_->stat(descriptor_, &status) != 0)
    throw IoError("{}: cannot be examined ({}). {}", path_, reason(errno), fix_for(errno));
  return status.st_size;
}

void write_synced_file(FileSystem& files, const std::string& path, std::string_view bytes) {
  File file = File::create(files, path);
  file.reserve(static_cast<int64_t>(bytes.size()));
  file.write_at(0, bytes.data(), bytes.size());
  file.sync();
  file.close();
}

std::string read_whole_file(FileSystem& files, const std::string& path, int64_t max_bytes) {
  File file = File::open(files, path);
  const int64_t size_bytes = file.size_bytes();
  if (size_bytes > max_bytes)
    throw FormatError("{}: has {} bytes, at most {} are read here. It is not a file of ours.", path, size_bytes,
                      max_bytes);
  std::string bytes(static_cast<size_t>(size_bytes), '\0');
  bytes.resize(file.read_at(0, bytes.data(), bytes.size()));
  return bytes;
}

std::vector<std::string> list_folder(FileSystem& files, const std::string& path) {
  std::vector<std::string> names;
  if (files.list(path, &names) != 0) {
    if (errno == ENOENT) return {};
    throw IoError("{}: the folder cannot be listed ({}). {}", path, reason(errno), fix_for(errno));
  }
  return names;
}

void make_folders(FileSystem& files, const std::string& path) {
  if (path.empty() || is_folder(path)) return;
  const std::string parent = parent_folder(path);
  if (parent != path) make_folders(files, parent);
  if (files.make_folder(path) != 0 && errno != EEXIST)
    throw IoError("{}: the folder cannot be made ({}). {}", path, reason(errno), fix_for(errno));
  if (!is_folder(path)) throw IoError("{}: a folder is needed here, but a file has that name. Move it away.", path);
}

void sync_folder(FileSystem& files, const std::string& path) {
  const int descriptor = open_retrying(files, path, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) throw IoError("{}: the folder cannot be opened ({}). {}", path, reason(errno), fix_for(errno));
  int result;
  do {
    result = files.fsync(descriptor);
  } while (result != 0 && errno == EINTR);
  const int error = errno;
  files.close(descriptor);
  if (result != 0) throw SyncError("{}: fsync of the folder failed ({}). {}", path, reason(error), fix_for(error));
}

void remove_tree(FileSystem& files, const std::string& path) {
  for (const std::string& name : list_folder(files, path)) {
    const std::string child = path + "/" + name;
    struct stat status {};
    if (::lstat(child.c_str(), &status) == 0 && S_ISDIR(status.st_mode)) {
      remove_tree(files, child);
    } else if (files.unlink(child) != 0 && errno != ENOENT) {
      throw IoError("{}: cannot be removed ({}). {}", child, reason(errno), fix_for(errno));
    }
  }
  if (files.remove_folder(path) != 0 && errno != ENOENT)
    throw IoError("{}: the folder cannot be removed ({}). {}", path, reason(errno), fix_for(errno));
}

bool is_folder(const std::string& path) {
  struct stat status {};
  return ::stat(path.c_str(), &status) == 0 && S_ISDIR(status.st_mode);
}

std::string parent_folder(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "." : "/";
  const size_t slash = path.find_last_of('/', end);
  if (slash == std::string::npos) return ".";
  const size_t last = path.find_last_not_of('/', slash);
  return last == std::string::npos ? "/" : path.substr(0, last + 1);
}

std::string base_name(const std::string& path) {
  const size_t end = path.find_last_not_of('/');
  if (end == std::string::npos) return path.empty() ? "" : "/";
  const size_t slash = path.find_last_of('/', end);
  return slash == std::string::npos ? path.substr(0, end + 1) : path.substr(slash + 1, end - slash);
}

std::string random_tag() {
  std::random_device device;
  return hex64((uint64_t{device()} << 32) | device());
}

}  // namespace temper
