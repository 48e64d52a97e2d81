// What ranks that save or load together tell each other: each acts, then all hear what each has to say, and a failure
// of one is the same error on all. So no rank waits for another that has given up. Without a communicator: one rank.
#pragma once
#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"

namespace temper {

class Agreement {
 public:
  explicit Agreement(Communicator* ranks = nullptr) : ranks_(ranks) {}

  int rank() const { return ranks_ == nullptr ? 0 : ranks_->rank(); }
  int size() const { return ranks_ == nullptr ? 1 : ranks_->size(); }
  bool leads() const { return rank() == 0; }

  // A collective call: what every rank has to say, in the order of the ranks.
  std::vector<std::string> tell(const std::string& what, const std::string& text) const;

  // A collective call: the bytes of rank `root` come to all, `size_bytes` of them everywhere.
  void broadcast(const std::string& what, int root, char* data, int64_t size_bytes) const;

  // A collective call: the texts that `action` returned on the ranks. Where it threw an error on one of them, all throw
  // that error, with the rank's number before its text: the first such rank's. A CommError is not passed on: the
  // communicator itself fails on the others.
  std::vector<std::string> act(const std::string& what, const std::function<std::string()>& action) const;

 private:
  Communicator* ranks_;
};

}  // namespace temper
