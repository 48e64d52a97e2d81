// Nodes with disks of their own, folders here: who holds what, and what is left when one disk is gone.
#include "checkpoint/nodes.h"

#include <gmock/gmock.h>

#include <filesystem>

#include "checkpoint/folder.h"
#include "checkpoint/partners.h"
#include "checkpoint/tiers.h"
#include "core/log.h"
#include "tests/checkpoint/example_state.h"
#include "tests/checkpoint/fault_file_system.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

const CommOptions kComm{.timeout = std::chrono::seconds(120), .check_agreement = true};

at::Tensor whole_matrix(int64_t step) { return example_tensor({13, 100003}, at::kFloat, step); }

// A rank's rows of the matrix, and on the first rank a number.
std::vector<TensorEntry> rows_of(int64_t step, int rank, int num_ranks, bool all_rows) {
  const at::Tensor whole = whole_matrix(step);
  const int64_t begin = all_rows ? 0 : 13 * rank / num_ranks, end = all_rows ? 13 : 13 * (rank + 1) / num_ranks;
  std::vector<TensorEntry> entries = {
      {"model/rows", whole.narrow(0, begin, end - begin).clone(), whole.sizes().vec(), {begin, 0}}};
  if (rank == 0 || all_rows) entries.push_back({"optim/step", example_tensor({}, at::kLong, step)});
  return entries;
}

class Nodes : public testing::Test {
 protected:
  Nodes() { set_log_level(LogLevel::kError); }
  ~Nodes() override { set_log_level(LogLevel::kInfo); }

  // Rank r is on node r / ranks_per_node.
  TierOptions on_node(int rank, bool replicate) const {
    TierOptions options;
    options.local = format("{}/node{}", folder_.path(), rank / ranks_per_node_);
    options.durable = folder_.path() + "/durable";
    options.replicate = replicate;
    return options;
  }
  void run(int num_ranks, bool replicate, const std::function<void(CheckpointTiers&, Communicator&)>& body) {
    on_thread_ranks(num_ranks, kComm, [&](Communicator& comm) {
      QuickFileSystem files;
      const auto copying = comm.split(0, comm.rank());
      CheckpointTiers tiers(files, on_node(comm.rank(), replicate), &comm, copying.get());
      tiers.prepare();
      body(tiers, comm);
    });
  }
  void save_steps(int num_ranks, bool replicate, int64_t last) {
    run(num_ranks, replicate, [&](CheckpointTiers& tiers, Communicator& comm) {
      for (int64_t step = 1; step <= last; ++step) {
        CheckpointState state = example_state(step);
        state.tensors = rows_of(step, comm.rank(), num_ranks, false);
        const SaveReport report = tiers.save(state, {.local = true});
        EXPECT_THAT(report.partners, IsEmpty());
      }
    });
  }
  // What a world of any size makes of it; every rank wants all rows.
  void expect_step(int num_ranks, int64_t step) {
    run(num_ranks, true, [&](CheckpointTiers& tiers, Communicator& comm) {
      std::vector<TensorEntry> places = rows_of(0, comm.rank(), num_ranks, true);
      const auto loaded = tiers.load_newest([&](const CheckpointHeader&) { return places; });
      ASSERT_TRUE(loaded.has_value());
      EXPECT_EQ(loaded->header.step, step);
      EXPECT_TRUE(same_bits(places[0].tensor, whole_matrix(step))) << "rank " << comm.rank();
      EXPECT_TRUE(same_bits(places[1].tensor, example_tensor({}, at::kLong, step)));
    });
  }
  std::vector<std::string> files_of(int node, const std::string& step) {
    QuickFileSystem files;
    return list_folder(files, format("{}/node{}/{}", folder_.path(), node, step));
  }

  TemporaryFolder folder_;
  int ranks_per_node_ = 1;
};

TEST_F(Nodes, AreFoundByWritingToTheFolder) {
  ranks_per_node_ = 2;
  on_thread_ranks(5, kComm, [&](Communicator& comm) {
    QuickFileSystem files;
    const Agreement ranks(&comm);
    const NodeLayout nodes = NodeLayout::probe(files, on_node(comm.rank(), false).local, ranks);
    EXPECT_EQ(nodes.num_nodes(), 3);
    for (int rank = 0; rank < 5; ++rank) EXPECT_EQ(nodes.leader_of(rank), rank / 2 * 2);
    EXPECT_EQ(NodeLayout::probe(files, folder_.path() + "/shared", ranks).num_nodes(), 1);
  });
  EXPECT_TRUE(std::filesystem::is_empty(folder_.path() + "/node0"));
}

TEST(Partners, AreOnTheNextNodeAndInNoRoundTwice) {
  // Three nodes of two, two and one ranks.
  const NodeLayout nodes({0, 0, 2, 2, 4});
  const std::vector<int> receivers = receivers_of(nodes, 5);
  EXPECT_THAT(receivers, ElementsAre(2, 3, 4, 4, 0));
  std::vector<bool> sent(5);
  for (const std::vector<int>& senders : rounds_of(receivers)) {
    std::vector<int> parts;
    for (const int sender : senders) {
      parts.push_back(sender);
      parts.push_back(receivers[static_cast<size_t>(sender)]);
      sent[static_cast<size_t>(sender)] = true;
    }
    std::sort(parts.begin(), parts.end());
    EXPECT_EQ(std::unique(parts.begin(), parts.end()), parts.end());
  }
  EXPECT_THAT(sent, testing::Each(true));
}

TEST_F(Nodes, HoldTheirShardsAndANeighbours) {
  save_steps(3, true, 4);
  EXPECT_THAT(files_of(0, ""), ElementsAre("LATEST", "step_000003", "step_000004"));
  EXPECT_THAT(files_of(0, "step_000004"),
              ElementsAre("COMMITTED", "global.h5", "manifest.json", "shard_00000.h5", "shard_00002.h5"));
  EXPECT_THAT(files_of(1, "step_000004"),
              ElementsAre("COMMITTED", "global.h5", "manifest.json", "shard_00000.h5", "shard_00001.h5"));
  expect_step(3, 4);
}

TEST_F(Nodes, TheLossOfOneDiskLosesNothingWithPartners) {
  for (const int per_node : {1, 2})
    for (const int lost : {0, 1}) {
      ranks_per_node_ = per_node;
      save_steps(2 * per_node, true, 2);
      std::filesystem::remove_all(format("{}/node{}", folder_.path(), lost));
      expect_step(2 * per_node, 2);  // the lost node is back, empty
      QuickFileSystem files;
      EXPECT_THAT(list_folder(files, format("{}/node{}", folder_.path(), lost)), IsEmpty());
      std::filesystem::remove_all(folder_.path() + "/node0");
      std::filesystem::remove_all(folder_.path() + "/node1");
    }
}

TEST_F(Nodes, WithoutPartnersTheDurableCopyIsLeft) {
  save_steps(2, false, 1);
  run(2, false, [](CheckpointTiers& tiers, Communicator&) { tiers.copy_to_durable(1); });
  save_steps(2, false, 2);
  std::filesystem::remove_all(folder_.path() + "/node1");
  expect_step(2, 1);
  expect_step(3, 1);  // on another number of nodes too
}

TEST_F(Nodes, ADamagedShardIsReadFromThePartner) {
  save_steps(2, true, 1);
  QuickFileSystem files;
  const std::string shard = folder_.path() + "/node1/step_000001/shard_00001.h5";
  std::string bytes = read_whole_file(files, shard, 1 << 30);
  bytes[bytes.size() / 2] = static_cast<char>(bytes[bytes.size() / 2] ^ 1);
  files.unlink(shard);
  write_synced_file(files, shard, bytes);
  expect_step(2, 1);
  // Both copies: nothing is left of it.
  files.unlink(folder_.path() + "/node0/step_000001/shard_00001.h5");
  run(2, true, [&](CheckpointTiers& tiers, Communicator& comm) {
    const auto load = [&] {
      return tiers.load_newest([&](const CheckpointHeader&) { return rows_of(0, comm.rank(), 2, true); });
    };
    EXPECT_THAT(error_text<FormatError>(load),
                testing::AllOf(HasSubstr("shard_00001.h5"), HasSubstr("and no good copy is left")));
  });
}

// The partner's disk is full: the save counts, the copy does not.
TEST_F(Nodes, APartnerThatCannotWriteCostsTheCopyAlone) {
  std::vector<std::string> reports(2);
  on_thread_ranks(2, kComm, [&](Communicator& comm) {
    FaultFileSystem files;
    CheckpointTiers tiers(files, on_node(comm.rank(), true), &comm, nullptr);
    tiers.prepare();
    if (comm.rank() == 1) {  // its own shard is the first file that it reserves space for, the copy the second
      files.only = "reserve";
      files.calls = 0;
      files.fault = Fault::kError;
      files.fault_at = 1;
      files.error = ENOSPC;
    }
    CheckpointState state = example_state(1);
    state.tensors = rows_of(1, comm.rank(), 2, false);
    reports[static_cast<size_t>(comm.rank())] = tiers.save(state, {.local = true}).partners;
  });
  EXPECT_THAT(reports[0],
              testing::AllOf(HasSubstr("rank 0's shard on the node of rank 1"), HasSubstr("No space left")));
  EXPECT_EQ(reports[0], reports[1]);
  EXPECT_THAT(files_of(1, "step_000001"), ElementsAre("COMMITTED", "global.h5", "manifest.json", "shard_00001.h5"));
  expect_step(2, 1);
}

TEST_F(Nodes, ANodeThatFailsFailsTheSaveOnAllAndTheEarlierOneStays) {
  save_steps(2, true, 1);
  for (int64_t at = 0;; ++at) {
    std::vector<std::string> errors(2);
    bool fired = false;
    on_thread_ranks(2, kComm, [&](Communicator& comm) {
      FaultFileSystem files;
      CheckpointTiers tiers(files, on_node(comm.rank(), true), &comm, nullptr);
      tiers.prepare();
      CheckpointState state = example_state(2);
      state.tensors = rows_of(2, comm.rank(), 2, false);
      if (comm.rank() == 1) {
        files.calls = 0;
        files.fault = Fault::kError;
        files.fault_at = at;
        files.error = EIO;
      }
      try {
        tiers.save(state, {.local = true});
      } catch (const IoError& error) {
        errors[static_cast<size_t>(comm.rank())] = error.what();
      }
      if (comm.rank() == 1) fired = files.fired;
    });
    EXPECT_EQ(errors[0], errors[1]);
    run(2, true, [&](CheckpointTiers& tiers, Communicator& comm) {
      std::vector<TensorEntry> places = rows_of(0, comm.rank(), 2, true);
      const auto loaded = tiers.load_newest([&](const CheckpointHeader&) { return places; });
      ASSERT_TRUE(loaded.has_value()) << "call " << at;
      EXPECT_TRUE(loaded->header.step == 2 || !errors[0].empty()) << "call " << at;
      EXPECT_TRUE(same_bits(places[0].tensor, whole_matrix(loaded->header.step)));
    });
    for (const int node : {0, 1}) std::filesystem::remove_all(format("{}/node{}/step_000002", folder_.path(), node));
    if (!fired) break;
  }
}

}  // namespace
}  // namespace temper
