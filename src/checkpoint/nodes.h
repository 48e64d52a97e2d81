// Which ranks see one another's files below a folder: those of one node where it is on the node's own disk, all of them
// where it is shared. Found by trying, so that nobody has to say it and separate folders can stand for nodes in tests.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/agreement.h"
#include "checkpoint/file_system.h"

namespace temper {

class NodeLayout {
 public:
  NodeLayout() = default;                                                          // all see the same
  explicit NodeLayout(std::vector<int> leaders) : leaders_(std::move(leaders)) {}  // [rank], see leader_of()

  // A collective call. Makes the folder on every rank and writes to it: IoError where one cannot.
  static NodeLayout probe(FileSystem& files, const std::string& directory, const Agreement& ranks);

  // The lowest rank that sees what this one writes.
  int leader_of(int rank) const { return leaders_.empty() ? 0 : leaders_[static_cast<size_t>(rank)]; }
  bool leads(int rank) const { return leader_of(rank) == rank; }
  bool together(int one, int other) const { return leader_of(one) == leader_of(other); }
  int num_nodes() const;

 private:
  std::vector<int> leaders_;
};

}  // namespace temper
