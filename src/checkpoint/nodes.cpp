#include "checkpoint/nodes.h"

#include <algorithm>

namespace temper {
namespace {

constexpr char kProbe[] = "/.probe-";

// By its name alone: a listing may be older than the file on a network's file system.
bool is_there(FileSystem& files, const std::string& path) {
  try {
    File::open(files, path).close();
    return true;
  } catch (const IoError&) {
    return false;
  }
}

}  // namespace

NodeLayout NodeLayout::probe(FileSystem& files, const std::string& directory, const Agreement& ranks) {
  std::string own;
  const auto tags = ranks.act("folder written to", [&] {
    make_folders(files, directory);
    const std::string tag = random_tag();
    write_synced_file(files, directory + kProbe + tag, "x");
    own = directory + kProbe + tag;
    return tag;
  });
  std::vector<int> leaders;
  for (const std::string& seen : ranks.act("folder looked at", [&] {
         int lowest = 0;
         while (lowest < ranks.rank() && !is_there(files, directory + kProbe + tags[static_cast<size_t>(lowest)]))
           ++lowest;
         return format("{}", lowest);
       }))
    leaders.push_back(std::stoi(seen));
  files.unlink(own);
  return NodeLayout(std::move(leaders));
}

int NodeLayout::num_nodes() const {
  int count = leaders_.empty() ? 1 : 0;
  for (size_t rank = 0; rank < leaders_.size(); ++rank) count += leaders_[rank] == static_cast<int>(rank) ? 1 : 0;
  return count;
}

}  // namespace temper
