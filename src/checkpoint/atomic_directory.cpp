#include "checkpoint/atomic_directory.h"

#include <cerrno>
#include <cstring>

#include "core/log.h"

namespace temper {

AtomicDirectory::AtomicDirectory(FileSystem& files, const std::string& final_path)
    : files_(files), final_path_(final_path), temporary_path_(final_path + ".tmp-" + random_tag()) {
  make_folders(files_, parent_folder(final_path_));
  if (files_.make_folder(temporary_path_) != 0)
    throw IoError("{}: the folder cannot be made ({}). Check the parent's permissions and free space.", temporary_path_,
                  std::strerror(errno));
}

AtomicDirectory::~AtomicDirectory() {
  if (committed_) return;
  try {
    remove_tree(files_, temporary_path_);
  } catch (const Error& error) {
    log_warning("An unfinished folder stays behind: {}", error.what());
  }
}

void AtomicDirectory::commit() {
  sync_folder(files_, temporary_path_);
  const std::string parent = parent_folder(final_path_);
  std::string replaced;  // where the older folder went
  if (!is_folder(final_path_)) {
    if (files_.rename(temporary_path_, final_path_) != 0)
      throw IoError("{}: cannot be renamed to {} ({}).", temporary_path_, final_path_, std::strerror(errno));
  } else if (files_.exchange(temporary_path_, final_path_) == 0) {
    replaced = temporary_path_;
  } else {
    if (errno != EINVAL && errno != ENOSYS && errno != ENOTSUP)
      throw IoError("{}: cannot take the place of {} ({}).", temporary_path_, final_path_, std::strerror(errno));
    // Without an atomic exchange (NFS) there is a moment in which neither has the final name.
    const std::string aside = final_path_ + ".tmp-" + random_tag();
    if (files_.rename(final_path_, aside) != 0)
      throw IoError("{}: cannot be renamed to {} ({}).", final_path_, aside, std::strerror(errno));
    if (files_.rename(temporary_path_, final_path_) != 0) {
      const std::string why = std::strerror(errno);
      files_.rename(aside, final_path_);
      throw IoError("{}: cannot be renamed to {} ({}).", temporary_path_, final_path_, why);
    }
    replaced = aside;
  }
  committed_ = true;
  sync_folder(files_, parent);
  if (!replaced.empty()) {
    try {
      remove_tree(files_, replaced);
    } catch (const Error& error) {
      log_warning("The replaced folder stays behind: {}", error.what());
    }
  }
}

void sync_tree(FileSystem& files, const std::string& path) {
  for (const std::string& name : list_folder(files, path)) {
    const std::string child = path + "/" + name;
    if (is_folder(child)) {
      sync_tree(files, child);
    } else {
      File file = File::open(files, child);
      file.sync();
      file.close();
    }
  }
  sync_folder(files, path);
}

void write_directory_atomically(FileSystem& files, const std::string& final_path,
                                const std::function<void(const std::string& temporary_path)>& fill) {
  AtomicDirectory directory(files, final_path);
  fill(directory.path());
  sync_tree(files, directory.path());
  directory.commit();
}

int remove_unfinished(FileSystem& files, const std::string& parent) {
  int removed = 0;
  for (const std::string& name : list_folder(files, parent)) {
    if (name.find(".tmp-") == std::string::npos) continue;
    const std::string path = parent + "/" + name;
    log_info("Removing {}, left unfinished by an earlier run.", path);
    if (is_folder(path))
      remove_tree(files, path);
    else
      files.unlink(path);
    ++removed;
  }
  return removed;
}

}  // namespace temper
