// FileSystems for tests: one that fails, shortens or cuts off the n-th call and can lose what was not synced when the
// power goes; one that flips a bit of what is read. And a temporary folder.
#pragma once
#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <filesystem>
#include <functional>
#include <set>
#include <string>
#include <utility>
#include <vector>

#include "checkpoint/file_system.h"

namespace temper {

class TemporaryFolder {
 public:
  TemporaryFolder() : path_(testing::TempDir() + "temper-" + random_tag()) { std::filesystem::create_directory(path_); }
  ~TemporaryFolder() { std::filesystem::remove_all(path_); }
  TemporaryFolder(const TemporaryFolder&) = delete;
  const std::string& path() const { return path_; }

 private:
  std::string path_;
};

// The system's calls, but without waiting for the disk: tests save thousands of times.
class QuickFileSystem : public FileSystem {
 public:
  int fsync(int) override { return 0; }
};

enum class Fault {
  kNone,
  kError,        // the n-th call fails with `error` and does nothing
  kShort,        // the n-th call, if a transfer, moves one byte only
  kInterrupted,  // the n-th call, if it may be interrupted, fails with EINTR once
  kCrash,        // the n-th call and all later ones do nothing: the process is gone
};

class FaultFileSystem : public QuickFileSystem {
 public:
  Fault fault = Fault::kNone;
  int64_t fault_at = -1;  // counted from 0 over all calls
  int error = EIO;
  std::string only;  // if set, only calls of this name are counted
  int64_t calls = 0;
  bool fired = false;

  int open(const std::string& path, int flags, mode_t mode) override {
    if (hit("open", true)) return -1;
    const bool fresh = (flags & O_CREAT) != 0 && ::access(path.c_str(), F_OK) != 0;
    const int descriptor = FileSystem::open(path, flags, mode);
    if (fresh && descriptor >= 0)
      remember(path,
               [](const std::string& folder, const std::string& name) { ::unlink((folder + "/" + name).c_str()); });
    return descriptor;
  }
  int close(int descriptor) override {
    const bool failed = hit("close", false);
    const int result = FileSystem::close(descriptor);  // Linux closes in any case
    if (failed) errno = error;
    return failed ? -1 : result;
  }
  ssize_t pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) override {
    if (hit("pwrite", true)) return -1;
    unsynced_.insert(inode(descriptor));
    return FileSystem::pwrite(descriptor, data, shortened(size_bytes), offset);
  }
  ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset) override {
    if (hit("pread", true)) return -1;
    return FileSystem::pread(descriptor, data, shortened(size_bytes), offset);
  }
  int reserve(int descriptor, int64_t size_bytes) override {
    if (hit("reserve", true)) return -1;
    unsynced_.insert(inode(descriptor));
    return FileSystem::reserve(descriptor, size_bytes);
  }
  int truncate(int descriptor, int64_t size_bytes) override {
    return hit("truncate", true) ? -1 : FileSystem::truncate(descriptor, size_bytes);
  }
  int fsync(int descriptor) override {
    if (hit("fsync", true)) return -1;
    unsynced_.erase(inode(descriptor));
    undo_.erase(
        std::remove_if(undo_.begin(), undo_.end(), [&](const Undo& undo) { return undo.folder == inode(descriptor); }),
        undo_.end());
    return 0;
  }
  int stat(int descriptor, struct stat* status) override {
    return hit("stat", false) ? -1 : FileSystem::stat(descriptor, status);
  }
  int rename(const std::string& from, const std::string& to) override {
    if (hit("rename", false)) return -1;
    const int result = FileSystem::rename(from, to);
    const std::string old_name = base_name(from);
    if (result == 0)
      remember(to, [old_name](const std::string& folder, const std::string& name) {
        ::rename((folder + "/" + name).c_str(), (folder + "/" + old_name).c_str());
      });
    return result;
  }
  int exchange(const std::string& one, const std::string& other) override {
    if (hit("exchange", false)) return -1;
    const int result = FileSystem::exchange(one, other);
    const std::string name_of_other = base_name(other);
    if (result == 0)
      remember(one, [name_of_other](const std::string& folder, const std::string& name) {
        FileSystem().exchange(folder + "/" + name, folder + "/" + name_of_other);
      });
    return result;
  }
  int unlink(const std::string& path) override { return hit("unlink", false) ? -1 : FileSystem::unlink(path); }
  int remove_folder(const std::string& path) override {
    return hit("remove_folder", false) ? -1 : FileSystem::remove_folder(path);
  }
  int make_folder(const std::string& path) override {
    if (hit("make_folder", false)) return -1;
    const int result = FileSystem::make_folder(path);
    if (result == 0)
      remember(path, [](const std::string& folder, const std::string& name) {
        std::filesystem::remove_all(folder + "/" + name);
      });
    return result;
  }
  int list(const std::string& folder, std::vector<std::string>* names) override {
    return hit("list", false) ? -1 : FileSystem::list(folder, names);
  }

  // The power goes: files not synced since their last write become empty, names not synced since they were made or
  // changed go back, everything below `root`. (Deletions count as durable at once: with crashes at every call the other
  // half is seen.)
  void lose_unsynced(const std::string& root) {
    for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
      if (entry.is_regular_file() && unsynced_.count(inode(entry.path().string())) > 0)
        std::filesystem::resize_file(entry.path(), 0);
    for (auto undo = undo_.rbegin(); undo != undo_.rend(); ++undo) {
      std::string folder = inode(root) == undo->folder ? root : "";
      for (const auto& entry : std::filesystem::recursive_directory_iterator(root))
        if (entry.is_directory() && inode(entry.path().string()) == undo->folder) folder = entry.path().string();
      if (!folder.empty()) undo->apply(folder, undo->name);
    }
    undo_.clear();
    unsynced_.clear();
  }

 private:
  struct Undo {
    ino_t folder;
    std::string name;
    std::function<void(const std::string& folder, const std::string& name)> apply;
  };

  static ino_t inode(const std::string& path) {
    struct stat status {};
    return ::stat(path.c_str(), &status) == 0 ? status.st_ino : 0;
  }
  static ino_t inode(int descriptor) {
    struct stat status {};
    return ::fstat(descriptor, &status) == 0 ? status.st_ino : 0;
  }
  void remember(const std::string& path, std::function<void(const std::string&, const std::string&)> apply) {
    undo_.push_back({inode(parent_folder(path)), base_name(path), std::move(apply)});
  }

  bool hit(const std::string& name, bool may_be_interrupted) {
    shorten_ = false;
    if (!only.empty() && name != only) return false;
    const int64_t call = calls++;
    if (fault == Fault::kNone || call < fault_at || (call > fault_at && fault != Fault::kCrash)) return false;
    fired = true;
    switch (fault) {
      case Fault::kShort:
        shorten_ = true;
        return false;
      case Fault::kInterrupted:
        errno = EINTR;
        return may_be_interrupted;
      default:
        errno = error;
        return true;
    }
  }
  size_t shortened(size_t size_bytes) { return std::exchange(shorten_, false) ? size_t{1} : size_bytes; }

  bool shorten_ = false;
  std::set<ino_t> unsynced_;
  std::vector<Undo> undo_;
};

// Reads the file `name` as if `change` had been made to its bytes. Small files on one thread only.
class ChangedFileSystem : public QuickFileSystem {
 public:
  std::string name;
  std::function<void(char* bytes, int64_t offset, int64_t size_bytes)> change;

  int open(const std::string& path, int flags, mode_t mode) override {
    const int descriptor = FileSystem::open(path, flags, mode);
    if (descriptor >= 0 && base_name(path) == name) changed_ = descriptor;
    return descriptor;
  }
  int close(int descriptor) override {
    if (descriptor == changed_) changed_ = -1;
    return FileSystem::close(descriptor);
  }
  ssize_t pread(int descriptor, void* data, size_t size_bytes, int64_t offset) override {
    const ssize_t count = FileSystem::pread(descriptor, data, size_bytes, offset);
    if (count > 0 && descriptor == changed_) change(static_cast<char*>(data), offset, count);
    return count;
  }

 private:
  int changed_ = -1;
};

}  // namespace temper
