#include "comm/thread_communicator.h"

#include <gmock/gmock.h>

#include <thread>

#include "tests/comm/contract.h"

namespace temper {
namespace {

using ::testing::AllOf;
using ::testing::HasSubstr;

// Runs body(communicator) on every rank and returns what each threw, as text.
std::vector<std::string> on_ranks(int num_ranks, const CommOptions& options,
                                  const std::function<void(Communicator&)>& body, const SimulatedLink& link = {}) {
  ThreadWorld world(num_ranks, options, link);
  std::vector<std::string> errors(static_cast<size_t>(num_ranks));
  std::vector<std::thread> threads;
  for (int r = 0; r < num_ranks; ++r)
    threads.emplace_back([&, r] {
      try {
        const auto comm = world.communicator(r);
        body(*comm);
      } catch (const CommError& error) {
        errors[static_cast<size_t>(r)] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  return errors;
}

class ThreadContract : public ::testing::TestWithParam<std::tuple<int, bool, ContractCase>> {};

TEST_P(ThreadContract, Holds) {
  const auto& [num_ranks, check_agreement, contract] = GetParam();
  CommOptions options{.timeout = std::chrono::seconds(60), .check_agreement = check_agreement};
  for (const std::string& error : on_ranks(num_ranks, options, contract.run)) EXPECT_EQ(error, "");
}

INSTANTIATE_TEST_SUITE_P(Ranks, ThreadContract,
                         ::testing::Combine(::testing::Values(1, 2, 3, 4), ::testing::Bool(),
                                            ::testing::ValuesIn(kContract)),
                         [](const auto& tested) {
                           return std::string(std::get<2>(tested.param).name) + "On" +
                                  std::to_string(std::get<0>(tested.param)) +
                                  (std::get<1>(tested.param) ? "Compared" : "");
                         });

TEST(ThreadCommunicator, NamesTheRankThatIsLate) {
  CommOptions options{.timeout = std::chrono::milliseconds(700)};
  const auto errors = on_ranks(3, options, [](Communicator& comm) {
    if (comm.rank() == 1) std::this_thread::sleep_for(std::chrono::milliseconds(2500));
    comm.barrier("step 7");
  });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("barrier \"step 7\""), HasSubstr("held up by rank 1")));
  EXPECT_THAT(errors[1], HasSubstr("step 7"));  // it comes to an aborted world
  EXPECT_THAT(errors[2], HasSubstr("held up by rank 1"));
}

TEST(ThreadCommunicator, NamesTheRankThatIsGone) {
  CommOptions options{.timeout = std::chrono::seconds(60)};  // long before it is over
  const auto errors = on_ranks(3, options, [](Communicator& comm) {
    if (comm.rank() == 2) return;
    const at::Tensor tensor = at::ones({4});
    comm.all_reduce("gradients", tensor).wait();
  });
  EXPECT_THAT(errors[0], AllOf(HasSubstr("all_reduce \"gradients\""), HasSubstr("rank 2 is gone")));
  EXPECT_THAT(errors[1], HasSubstr("rank 2 is gone"));
}

TEST(ThreadCommunicator, CallsOutOfStepAreNamedWithBothSides) {
  CommOptions options{.timeout = std::chrono::seconds(60)};
  for (const bool check_agreement : {false, true}) {
    options.check_agreement = check_agreement;
    const auto errors = on_ranks(2, options, [](Communicator& comm) {
      const at::Tensor tensor = at::ones({comm.rank() == 0 ? 4 : 5});
      comm.all_reduce(comm.rank() == 0 ? "gradients" : "losses", tensor).wait();
    });
    for (const std::string& error : errors)
      EXPECT_THAT(error, AllOf(HasSubstr("out of step"), HasSubstr("gradients"), HasSubstr("losses"),
                               HasSubstr("16 bytes"), HasSubstr("20 bytes")));
  }
}

TEST(ThreadCommunicator, AbortEndsEveryRankWithTheReason) {
  CommOptions options{.timeout = std::chrono::seconds(60)};
  const auto errors = on_ranks(3, options, [](Communicator& comm) {
    const auto half = comm.split(0, 0);
    if (comm.rank() == 0) {
      half->abort("rank 0: the loss is not finite.");
      return;
    }
    half->barrier("after");
  });
  EXPECT_EQ(errors[1], "rank 0: the loss is not finite.");
  EXPECT_EQ(errors[2], "rank 0: the loss is not finite.");
}

TEST(ThreadCommunicator, SimulatedLinkTakesItsTime) {
  ThreadWorld world(2, {}, {.latency_s = 0.02, .gb_per_s = 0.01});
  std::vector<std::thread> threads;
  for (int r = 0; r < 2; ++r)
    threads.emplace_back([&, r] {
      const auto comm = world.communicator(r);
      comm->all_reduce("half a megabyte", at::ones({131072})).wait();  // 0.5 MB each way at 10 MB/s
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_GE(world.busy_s(), 0.02 + 0.052);
}

}  // namespace
}  // namespace temper
