// Weights from a trainer rank to a reader in another process by NCCL: mpirun -n 2 comm_nccl_weights_test. The first
// rank serves, the second one fetches; MPI tells it where, and when there is a version.
#include <iostream>
#include <random>

#include "comm/mpi_communicator.h"
#include "comm/weight_link.h"
#include "core/clock.h"
#include "tests/comm/nccl_ranks.h"
#include "tests/comm/weight_fixture.h"

namespace temper {
namespace {

constexpr int64_t kEpoch = 4, kLargeBytes = int64_t{256} << 20;
constexpr PolicyVersion kSmall = 5, kLarge = 7;  // versions of the test model, then of one large tensor

std::string large_bytes() {
  std::string bytes(kLargeBytes, '\0');
  std::mt19937_64 random(7);
  for (size_t i = 0; i + 8 <= bytes.size(); i += 8) {
    const uint64_t word = random();
    std::memcpy(&bytes[i], &word, 8);
  }
  return bytes;
}

void serve(Communicator& world, const std::shared_ptr<WeightLinks>& links) {
  WeightServerOptions options;
  options.links = links;
  options.allow_plain_text = true;
  WeightServer server(kAnyPort, std::nullopt, options);
  world.gather_texts("address", server.address());
  for (PolicyVersion version = 0; version < kSmall; ++version) {
    server.publish(kEpoch, version, TestShard(0, 1, version).parts());
    world.barrier("fetched");
  }
  const std::string bytes = large_bytes();
  for (PolicyVersion version = kSmall; version < kLarge; ++version) {
    server.publish(kEpoch, version, {{"large", WeightDtype::kInt8, {kLargeBytes}, 0, kLargeBytes, bytes}});
    world.barrier("fetched");
  }
  EXPECT_EQ(server.counters().link_transfers, kLarge);
}

void fetch(Communicator& world, const std::shared_ptr<WeightLinks>& links) {
  const std::string address = world.gather_texts("address", "").front();
  WeightClientOptions options;
  options.links = links;
  options.allow_plain_text = true;
  WeightClient client({address}, std::nullopt, options);
  for (PolicyVersion version = 0; version < kSmall; ++version) {
    expect_version(client.fetch(kEpoch, version, patience()), kEpoch, version);
    world.barrier("fetched");
  }
  const std::string expected = large_bytes();
  for (PolicyVersion version = kSmall; version < kLarge; ++version) {
    const Stopwatch watch;
    const FetchedWeights& weights = client.fetch(kEpoch, version, patience());
    std::cout << "256 MiB by NCCL, checked: " << kLargeBytes / watch.seconds() / 1e9 << " GB/s" << std::endl;
    EXPECT_TRUE(weights.tensors.at("large").bytes == expected);
    world.barrier("fetched");
  }
  EXPECT_EQ(client.counters().link_parts, kLarge);
  EXPECT_EQ(client.counters().retries, 0);
}

}  // namespace
}  // namespace temper

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  temper::part_hosts_where_gpus_are_few();
  temper::MpiWorld mpi({.timeout = std::chrono::seconds(120)});
  const auto world = mpi.communicator();
  const at::Device gpu = temper::take_gpu(mpi.local_rank());
  const auto links = temper::nccl_weight_links(gpu.index(), std::chrono::seconds(60));
  world->rank() == 0 ? temper::serve(*world, links) : temper::fetch(*world, links);
  return ::testing::Test::HasFailure() ? 1 : 0;
}
