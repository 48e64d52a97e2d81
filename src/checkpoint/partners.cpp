#include "checkpoint/partners.h"

#include <algorithm>

#include "checkpoint/data_file.h"
#include "checkpoint/fetch.h"

namespace temper {

std::vector<int> receivers_of(const NodeLayout& nodes, int num_ranks) {
  std::vector<std::vector<int>> members;  // [node] its ranks
  std::vector<size_t> node_of(static_cast<size_t>(num_ranks));
  for (int rank = 0; rank < num_ranks; ++rank) {
    const auto node = nodes.leads(rank) ? members.size() : node_of[static_cast<size_t>(nodes.leader_of(rank))];
    if (node == members.size()) members.emplace_back();
    node_of[static_cast<size_t>(rank)] = node;
    members[node].push_back(rank);
  }
  std::vector<int> receivers(static_cast<size_t>(num_ranks));
  for (size_t node = 0; node < members.size(); ++node) {
    const std::vector<int>& next = members[(node + 1) % members.size()];
    for (size_t i = 0; i < members[node].size(); ++i)
      receivers[static_cast<size_t>(members[node][i])] = next[i % next.size()];
  }
  return receivers;
}

std::vector<std::vector<int>> rounds_of(const std::vector<int>& receivers) {
  std::vector<std::vector<int>> rounds;
  std::vector<std::vector<bool>> busy;  // [round][rank]
  for (size_t sender = 0; sender < receivers.size(); ++sender) {
    const auto receiver = static_cast<size_t>(receivers[sender]);
    size_t round = 0;
    while (round < rounds.size() && (busy[round][sender] || busy[round][receiver])) ++round;
    if (round == rounds.size()) {
      rounds.emplace_back();
      busy.emplace_back(receivers.size(), false);
    }
    rounds[round].push_back(static_cast<int>(sender));
    busy[round][sender] = busy[round][receiver] = true;
  }
  return rounds;
}

Partners::Partners(Communicator& ranks, const NodeLayout& nodes) : rank_(ranks.rank()) {
  if (nodes.num_nodes() == 1) return;
  receivers_ = receivers_of(nodes, ranks.size());
  for (const std::vector<int>& senders : rounds_of(receivers_)) {
    Round round;
    for (const int sender : senders)
      if (sender == rank_ || receiver_of(sender) == rank_) round.sender = sender;
    // Colours: the sender's number; of ranks without a part their own, behind all senders'.
    const int color = round.sender >= 0 ? round.sender : ranks.size() + rank_;
    round.pair = ranks.split_for_host(color, rank_ == round.sender ? 0 : 1);
    rounds_.push_back(std::move(round));
  }
}

std::string Partners::exchange(FileSystem& files, const std::vector<FileRecord>& records,
                               const std::string& folder) const {
  std::string failure;
  for (const Round& round : rounds_) {
    if (round.sender < 0) continue;
    const FileRecord& record = records[static_cast<size_t>(round.sender)];
    if (record.name.empty()) continue;
    const bool receives = round.sender != rank_;
    try {
      fetch_file(files, record, folder, 0, receives ? folder : "", Agreement(round.pair.get()));
      if (!receives) continue;
      File copy = File::open(files, folder + "/" + record.name);
      copy.sync();
      copy.close();
      const auto problems =
          read_data_file(files, folder, record, whole_file(record), ReadMode::kStopAtFirstProblem, /*from_disk=*/true);
      if (!problems.empty()) throw IoError("{}/{}", folder, describe(problems[0]));
    } catch (const IoError& error) {
      failure = format("the copy of rank {}'s shard on the node of rank {}: {}", round.sender,
                       receiver_of(round.sender), error.what());
      if (receives) files.unlink(folder + "/" + record.name);
    }
  }
  return failure;
}

}  // namespace temper
