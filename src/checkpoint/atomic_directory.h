// A folder that appears under its final name complete and durable, or not at all: checkpoints, exported models. It is
// filled under NAME.tmp-TAG and renamed; an older folder of that name stays whole until the new one takes its place.
#pragma once
#include <functional>
#include <string>

#include "checkpoint/file_system.h"

namespace temper {

class AtomicDirectory {
 public:
  // Makes the folder final_path.tmp-TAG, and the parents.
  AtomicDirectory(FileSystem& files, const std::string& final_path);
  ~AtomicDirectory();  // removes what was not committed
  AtomicDirectory(const AtomicDirectory&) = delete;
  AtomicDirectory& operator=(const AtomicDirectory&) = delete;

  const std::string& path() const { return temporary_path_; }  // write here
  // REQUIRES: every file inside is durable (sync_tree does it). Syncs the folder, renames, syncs the parent.
  void commit();

 private:
  FileSystem& files_;
  std::string final_path_;
  std::string temporary_path_;
  bool committed_ = false;
};

// Syncs every file and folder below `path`, then `path`.
void sync_tree(FileSystem& files, const std::string& path);

// `fill` writes into the temporary folder it is given, by any means; then all is synced and renamed to final_path.
// If it throws, nothing appears and what was there stays.
void write_directory_atomically(FileSystem& files, const std::string& final_path,
                                const std::function<void(const std::string& temporary_path)>& fill);

// Removes what crashed writers left in `parent`: whatever has ".tmp-" in its name. REQUIRES: no writer is at work
// there. Returns how many went.
int remove_unfinished(FileSystem& files, const std::string& parent);

}  // namespace temper
