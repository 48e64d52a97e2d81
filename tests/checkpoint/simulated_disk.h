// What a disk may hold after the power went at any moment: TraceFileSystem notes every call that changes something, in
// the order in which the ranks made them; SimulatedDisk makes the noted calls and says what is left when only what was
// synced is certain. POSIX at its least generous: data are durable after fsync of the file, names after fsync of their
// folder; of what was not synced any part may be there, pages of 512 bytes singly.
#pragma once
#include <fcntl.h>

#include <algorithm>
#include <filesystem>
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "core/rng.h"
#include "tests/checkpoint/fault_file_system.h"

namespace temper {

struct DiskCall {
  enum class Kind { kOpen, kWrite, kResize, kSync, kRename, kExchange, kUnlink, kRemoveFolder, kMakeFolder };
  Kind kind = Kind::kOpen;
  std::string path = {}, other = {};  // below the root; `other` is the new name
  bool creates = false;               // kOpen
  int64_t handle = -1;                // kOpen makes it, kWrite, kResize and kSync take it; never used twice
  int64_t offset = 0;                 // kWrite: where; kResize: the size
  std::string bytes = {};             // kWrite
};

inline std::string describe(const DiskCall& call) {
  constexpr const char* kNames[] = {"open",     "write",  "resize",        "sync",       "rename",
                                    "exchange", "unlink", "remove folder", "make folder"};
  return format("{} {}{}", kNames[static_cast<size_t>(call.kind)], call.path,
                call.other.empty() ? "" : " to " + call.other);
}

// Threads may share one: a call and its note are one.
class TraceFileSystem : public QuickFileSystem {
 public:
  explicit TraceFileSystem(std::string root) : root_(std::move(root)) {}

  const std::vector<DiskCall>& calls() const { return calls_; }

  int open(const std::string& path, int flags, mode_t mode) override {
    const std::lock_guard lock(mutex_);
    const int descriptor = QuickFileSystem::open(path, flags, mode);
    if (descriptor < 0) return descriptor;
    handles_[descriptor] = {next_handle_++, below_root(path)};
    note({.kind = DiskCall::Kind::kOpen,
          .path = below_root(path),
          .creates = (flags & O_CREAT) != 0,
          .handle = handles_[descriptor].first});
    return descriptor;
  }
  ssize_t pwrite(int descriptor, const void* data, size_t size_bytes, int64_t offset) override {
    const std::lock_guard lock(mutex_);
    const ssize_t count = QuickFileSystem::pwrite(descriptor, data, size_bytes, offset);
    if (count > 0)
      note_of(descriptor, {.kind = DiskCall::Kind::kWrite,
                           .offset = offset,
                           .bytes = std::string(static_cast<const char*>(data), static_cast<size_t>(count))});
    return count;
  }
  int reserve(int descriptor, int64_t size_bytes) override {
    const std::lock_guard lock(mutex_);
    const int result = QuickFileSystem::reserve(descriptor, size_bytes);
    if (result == 0) note_of(descriptor, {.kind = DiskCall::Kind::kResize, .offset = size_bytes});
    return result;
  }
  int fsync(int descriptor) override {
    const std::lock_guard lock(mutex_);
    note_of(descriptor, {.kind = DiskCall::Kind::kSync});
    return 0;
  }
  int rename(const std::string& from, const std::string& to) override {
    return noted(DiskCall::Kind::kRename, from, to, [&] { return QuickFileSystem::rename(from, to); });
  }
  int exchange(const std::string& one, const std::string& other) override {
    return noted(DiskCall::Kind::kExchange, one, other, [&] { return QuickFileSystem::exchange(one, other); });
  }
  int unlink(const std::string& path) override {
    return noted(DiskCall::Kind::kUnlink, path, "", [&] { return QuickFileSystem::unlink(path); });
  }
  int remove_folder(const std::string& path) override {
    return noted(DiskCall::Kind::kRemoveFolder, path, "", [&] { return QuickFileSystem::remove_folder(path); });
  }
  int make_folder(const std::string& path) override {
    return noted(DiskCall::Kind::kMakeFolder, path, "", [&] { return QuickFileSystem::make_folder(path); });
  }
  int truncate(int, int64_t) override {
    ADD_FAILURE() << "truncate is not simulated";
    return -1;
  }

 private:
  std::string below_root(const std::string& path) const {
    const std::filesystem::path below = std::filesystem::path(path).lexically_relative(root_);
    return below == "." ? "" : below.string();
  }
  void note(DiskCall call) { calls_.push_back(std::move(call)); }
  void note_of(int descriptor, DiskCall call) {
    std::tie(call.handle, call.path) = handles_.at(descriptor);
    note(std::move(call));
  }
  template <class F>
  int noted(DiskCall::Kind kind, const std::string& path, const std::string& other, F&& action) {
    const std::lock_guard lock(mutex_);
    const int result = action();
    if (result == 0) note({.kind = kind, .path = below_root(path), .other = other.empty() ? "" : below_root(other)});
    return result;
  }

  std::string root_;
  std::mutex mutex_;                                        // guards all below
  std::map<int, std::pair<int64_t, std::string>> handles_;  // of a descriptor, the last time it was given out
  int64_t next_handle_ = 0;
  std::vector<DiskCall> calls_;
};

// How much of what was not synced is found after the power went.
enum class Loss { kAll, kNothing, kTorn };

class SimulatedDisk {
 public:
  // Holds what lies in `folder`, all of it durable.
  explicit SimulatedDisk(const std::string& folder) { load(folder, root_); }

  void apply(const DiskCall& call) {
    using Kind = DiskCall::Kind;
    switch (call.kind) {
      case Kind::kOpen:
        if (call.creates) change(parent_of(call.path), {{base_name(call.path), std::make_shared<Node>()}});
        handles_[call.handle] = find(call.path);
        break;
      case Kind::kWrite:
        handles_.at(call.handle)->pending.push_back({call.offset, call.bytes});
        break;
      case Kind::kResize:  // the last byte's being there says how long it is
        handles_.at(call.handle)->pending.push_back({call.offset, ""});
        break;
      case Kind::kSync:
        handles_.at(call.handle)->settle();
        break;
      case Kind::kMakeFolder: {
        auto node = std::make_shared<Node>();
        node->is_folder = true;
        change(parent_of(call.path), {{base_name(call.path), node}});
        break;
      }
      case Kind::kRename:
        change(parent_of(call.path), {{base_name(call.path), nullptr}, {base_name(call.other), find(call.path)}});
        break;
      case Kind::kExchange:
        change(parent_of(call.path),
               {{base_name(call.path), find(call.other)}, {base_name(call.other), find(call.path)}});
        break;
      case Kind::kUnlink:
      case Kind::kRemoveFolder:
        change(parent_of(call.path), {{base_name(call.path), nullptr}});
        break;
    }
  }

  // Path → contents of each file (a folder: nothing) that the disk holds after the power went now.
  using Contents = std::map<std::string, std::optional<std::string>>;
  Contents after_power_cut(Loss loss, uint64_t seed) const {
    SplitMix64 random(seed);
    Contents found;
    collect("", *root_, loss, &random, &found);
    return found;
  }

 private:
  struct Node;
  using Entry = std::pair<std::string, std::shared_ptr<Node>>;  // null: no such name
  struct Write {
    int64_t offset;
    std::string bytes;  // none: the file ends at `offset`
  };
  struct Node {
    bool is_folder = false;
    std::string durable;                                                    // of a file
    std::vector<Write> pending;                                             // since its last sync
    std::map<std::string, std::shared_ptr<Node>> entries, durable_entries;  // of a folder: as seen; as on the disk
    std::vector<std::vector<Entry>> pending_entries;  // since its last sync; what one call changes comes together

    void settle() {
      for (const Write& write : pending) put(write, 0, static_cast<int64_t>(write.bytes.size()), &durable);
      pending.clear();
      durable_entries = entries;
      pending_entries.clear();
    }
  };

  static void put(const Write& write, int64_t begin, int64_t end, std::string* content) {
    const auto needed = static_cast<size_t>(write.offset + end);
    if (content->size() < needed) content->resize(needed, '\0');
    content->replace(static_cast<size_t>(write.offset + begin), static_cast<size_t>(end - begin), write.bytes,
                     static_cast<size_t>(begin), static_cast<size_t>(end - begin));
  }

  static std::string parent_of(const std::string& path) {
    const size_t slash = path.rfind('/');
    return slash == std::string::npos ? "" : path.substr(0, slash);
  }
  std::shared_ptr<Node> find(const std::string& path) const {
    std::shared_ptr<Node> node = root_;
    for (const auto& part : std::filesystem::path(path)) node = node->entries.at(part.string());
    return node;
  }
  void change(const std::string& folder, std::vector<Entry> entries) {
    const auto node = find(folder);
    for (const auto& [name, child] : entries) set(name, child, &node->entries);
    node->pending_entries.push_back(std::move(entries));
  }
  static void set(const std::string& name, const std::shared_ptr<Node>& child,
                  std::map<std::string, std::shared_ptr<Node>>* entries) {
    if (child == nullptr)
      entries->erase(name);
    else
      (*entries)[name] = child;
  }

  static void load(const std::filesystem::path& folder, const std::shared_ptr<Node>& node) {
    for (const auto& entry : std::filesystem::directory_iterator(folder)) {
      auto child = std::make_shared<Node>();
      if (entry.is_directory()) {
        child->is_folder = true;
        load(entry.path(), child);
      } else {
        std::ifstream file(entry.path(), std::ios::binary);
        child->durable.assign(std::istreambuf_iterator<char>(file), {});
      }
      node->entries[entry.path().filename()] = node->durable_entries[entry.path().filename()] = child;
    }
  }

  static bool survives(Loss loss, SplitMix64* random) {
    return loss == Loss::kNothing || (loss == Loss::kTorn && random->next() % 2 == 0);
  }

  static std::string content_of(const Node& file, Loss loss, SplitMix64* random) {
    constexpr int64_t kPageBytes = 512;
    std::string content = file.durable;
    for (const Write& write : file.pending) {
      const auto size_bytes = static_cast<int64_t>(write.bytes.size());
      if (size_bytes == 0 && survives(loss, random)) put(write, 0, 0, &content);
      for (int64_t at = 0; at < size_bytes; at += kPageBytes)
        if (survives(loss, random)) put(write, at, std::min(size_bytes, at + kPageBytes), &content);
    }
    return content;
  }

  static void collect(const std::string& path, const Node& folder, Loss loss, SplitMix64* random, Contents* found) {
    auto entries = folder.durable_entries;
    for (const auto& changed : folder.pending_entries)
      if (survives(loss, random))
        for (const auto& [name, child] : changed) set(name, child, &entries);
    for (const auto& [name, child] : entries) {
      const std::string below = path.empty() ? name : path + "/" + name;
      if (child->is_folder) {
        (*found)[below] = std::nullopt;
        collect(below, *child, loss, random, found);
      } else {
        (*found)[below] = content_of(*child, loss, random);
      }
    }
  }

  std::shared_ptr<Node> root_ = [] {
    auto node = std::make_shared<Node>();
    node->is_folder = true;
    return node;
  }();
  std::map<int64_t, std::shared_ptr<Node>> handles_;
};

}  // namespace temper
