#include "core/files.h"

#include <fcntl.h>
#include <sys/file.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/process.h"

namespace temper {
namespace {

std::string reason() { return std::strerror(errno); }

// write(2) until all is written; false with errno set on failure.
bool write_all(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0) {
      if (errno == EINTR) continue;
      return false;
    }
    bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

void sync_directory(const std::string& directory) {
  const int descriptor = ::open(directory.c_str(), O_RDONLY | O_DIRECTORY | O_CLOEXEC);
  if (descriptor < 0) return;
  ::fsync(descriptor);
  ::close(descriptor);
}

}  // namespace

std::string read_file(const std::string& path) {
  std::error_code code;
  if (std::filesystem::is_directory(path, code)) throw IoError("{}: is a folder, a file is needed here.", path);
  std::ifstream in(path, std::ios::binary);
  if (!in) throw IoError("{}: cannot be opened ({}). Check the path and its permissions.", path, reason());
  std::string bytes((std::istreambuf_iterator<char>(in)), std::istreambuf_iterator<char>());
  if (in.bad()) throw IoError("{}: reading failed ({}).", path, reason());
  return bytes;
}

void write_file_atomically(const std::string& path, std::string_view bytes) {
  const std::string temporary = format("{}.tmp-{}", path, ::getpid());
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0)
    throw IoError("{}: cannot be created ({}). Check that the folder exists and is writable.", temporary, reason());
  bool good = write_all(descriptor, bytes) && ::fsync(descriptor) == 0;
  const std::string why = reason();
  good = ::close(descriptor) == 0 && good;
  if (good && ::rename(temporary.c_str(), path.c_str()) != 0) good = false;
  if (!good) {
    ::unlink(temporary.c_str());
    throw IoError("{}: writing {} bytes failed ({}). Free some space or choose another folder.", path, bytes.size(),
                  why);
  }
  sync_directory(
      std::filesystem::path(path).parent_path().empty() ? "." : std::filesystem::path(path).parent_path().string());
}

bool replace_file(const std::string& path, std::string_view bytes) {
  const std::string temporary = format("{}.tmp-{}", path, ::getpid());
  const int descriptor = ::open(temporary.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (descriptor < 0) return false;
  bool good = write_all(descriptor, bytes);
  good = ::close(descriptor) == 0 && good;
  if (good && ::rename(temporary.c_str(), path.c_str()) == 0) return true;
  ::unlink(temporary.c_str());
  return false;
}

void check_can_write(const std::string& path) {
  std::error_code code;
  const auto status = std::filesystem::status(path, code);
  if (std::filesystem::exists(status) && !std::filesystem::is_regular_file(status))
    throw IoError("{}: exists and is not a file. Give the name of a file.", path);
  const std::string parent = std::filesystem::path(path).parent_path().string();
  const std::string folder = parent.empty() ? "." : parent;
  if (::access(folder.c_str(), W_OK | X_OK) != 0)
    throw IoError("{}: the folder {} cannot be written to ({}). Make it, or give another path.", path, folder,
                  reason());
}

void make_directories(const std::string& path) {
  std::error_code code;
  std::filesystem::create_directories(path, code);
  if (code)
    throw IoError("{}: the folder cannot be made ({}). Check the parent's permissions and free space.", path,
                  code.message());
}

bool file_exists(const std::string& path) {
  std::error_code code;
  return std::filesystem::exists(path, code);
}

MappedFile::MappedFile(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) throw IoError("{}: cannot be opened ({}). Check the path and its permissions.", path, reason());
  struct stat status {};
  if (::fstat(descriptor, &status) != 0 || !S_ISREG(status.st_mode)) {
    ::close(descriptor);
    throw IoError("{}: is not a regular file.", path);
  }
  size_bytes_ = static_cast<size_t>(status.st_size);
  if (size_bytes_ > 0) {
    void* address = ::mmap(nullptr, size_bytes_, PROT_READ, MAP_PRIVATE, descriptor, 0);
    const std::string why = reason();
    ::close(descriptor);
    if (address == MAP_FAILED) throw IoError("{}: cannot be mapped ({}).", path, why);
    data_ = static_cast<const std::byte*>(address);
  } else {
    ::close(descriptor);
  }
}

MappedFile::~MappedFile() {
  if (data_ != nullptr) ::munmap(const_cast<std::byte*>(data_), size_bytes_);
}

MappedFile::MappedFile(MappedFile&& other) noexcept : data_(other.data_), size_bytes_(other.size_bytes_) {
  other.data_ = nullptr;
  other.size_bytes_ = 0;
}

std::string lock_label() {
  const std::string job = slurm_job();
  return format("host {} pid {}{}", host_name(), ::getpid(), job.empty() ? job : format(" of Slurm job {}", job));
}

FileLock::FileLock(const std::string& path) : descriptor_(::open(path.c_str(), O_RDWR | O_CREAT | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0)
    throw IoError("{}: the lock file cannot be opened ({}). Check the folder's permissions.", path, reason());
  if (::flock(descriptor_, LOCK_EX | LOCK_NB) != 0) {
    if (errno != EWOULDBLOCK) {
      const std::string why = reason();
      ::close(descriptor_);
      throw IoError(
          "{}: cannot be locked ({}), so a second run could write here unnoticed. Mount the file system with flock "
          "support, or choose another --run.dir.",
          path, why);
    }
    char holder[256] = {};
    const ssize_t size = ::pread(descriptor_, holder, sizeof holder - 1, 0);
    ::close(descriptor_);
    std::string name(holder, size > 0 ? static_cast<size_t>(size) : 0);
    while (!name.empty() && name.back() == '\n') name.pop_back();
    throw ConfigError("{}: this run directory is in use by {}. Wait for it, stop it, or choose another --run.name.",
                      path, name.empty() ? "another process" : name);
  }
  const std::string text = lock_label() + "\n";
  if (::ftruncate(descriptor_, 0) != 0 || !write_all(descriptor_, text)) { /* the lock holds without its label */
  }
}

FileLock::~FileLock() { ::close(descriptor_); }

bool is_locked(const std::string& path) {
  const int descriptor = ::open(path.c_str(), O_RDONLY | O_CLOEXEC);
  if (descriptor < 0) return false;
  const bool held = ::flock(descriptor, LOCK_SH | LOCK_NB) != 0 && errno == EWOULDBLOCK;
  ::close(descriptor);
  return held;
}

LineWriter::LineWriter(const std::string& path, int64_t keep_bytes)
    : path_(path), descriptor_(::open(path.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644)) {
  if (descriptor_ < 0) throw IoError("{}: cannot be opened for appending ({}).", path, reason());
  if (keep_bytes >= 0 && ::ftruncate(descriptor_, keep_bytes) != 0) {
    ::close(descriptor_);
    throw IoError("{}: cannot be cut to {} bytes ({}).", path, keep_bytes, reason());
  }
}

LineWriter::~LineWriter() { ::close(descriptor_); }

bool LineWriter::append(std::string_view line) {
  std::string text(line);
  text += '\n';
  const off_t end = ::lseek(descriptor_, 0, SEEK_END);
  if (write_all(descriptor_, text)) return true;
  if (end >= 0 && ::ftruncate(descriptor_, end) != 0) return false;  // take half a line back
  return false;
}

}  // namespace temper
