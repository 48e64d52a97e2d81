#include "rollout/worker.h"

#include <gmock/gmock.h>

namespace temper {
namespace {

using testing::ElementsAre;
using testing::IsEmpty;

class WorkerTest : public testing::Test {
 protected:
  explicit WorkerTest(bool in_flight = false)
      : worker({.name = "w",
                .build = "b1",
                .model = "m1",
                .config = "c1",
                .max_leases = 2,
                .in_flight_updates = in_flight,
                .hub_timeout_ms = 5000,
                .first_backoff_ms = 100,
                .max_backoff_ms = 1000}) {}

  void hear(RolloutMessage::Body body, int64_t epoch = 3) { worker.receive({epoch, std::move(body)}, now); }
  void join(int64_t epoch = 3, PolicyVersion version = 0) { hear(Welcome{1000, version, {"tcp://weights:1"}}, epoch); }
  // Joined, with weights of this version in use.
  void be_ready(PolicyVersion version = 0) {
    join(3, version);
    worker.fetched(3, version, now);
    worker.take_actions();
    worker.take_outbox();
  }
  Lease lease(int64_t id, PolicyVersion oldest = 0, bool exact = false) {
    Lease lease;
    lease.id = id;
    lease.prompt.serial = 10 * id;
    lease.oldest_version = oldest;
    lease.exact = exact;
    return lease;
  }
  template <class Body>
  std::vector<Body> said() {
    for (RolloutMessage& message : worker.take_outbox()) mail.push_back(std::move(message));
    return extract<Body>(
        mail, [](RolloutMessage & message) -> auto& { return message.body; });
  }
  template <class Action>
  std::vector<Action> wants() {
    for (WorkerAction& action : worker.take_actions()) actions.push_back(std::move(action));
    return extract<Action>(
        actions, [](WorkerAction & action) -> auto& { return action; });
  }
  template <class Kind, class Items, class Of>
  std::vector<Kind> extract(Items& items, const Of& of) {
    std::vector<Kind> found;
    std::erase_if(items, [&](auto& item) {
      auto* kind = std::get_if<Kind>(&of(item));
      if (kind == nullptr) return false;
      found.push_back(std::move(*kind));
      return true;
    });
    return found;
  }

  RolloutWorker worker;
  std::vector<RolloutMessage> mail;
  std::vector<WorkerAction> actions;
  int64_t now = 1000;
};

TEST_F(WorkerTest, SaysHelloLessAndLessOftenUntilItIsWelcome) {
  std::vector<int64_t> times;
  for (; now < 10'000; now += 10) {
    worker.tick(now);
    if (!said<Hello>().empty()) times.push_back(now);
  }
  ASSERT_GE(times.size(), 6u);
  EXPECT_LE(times[1] - times[0], 100 + 10);
  for (size_t i = 1; i < times.size(); ++i) EXPECT_LE(times[i] - times[i - 1], 1000 + 10);
  EXPECT_GE(times.back() - times[times.size() - 2], 500);
  join();
  EXPECT_EQ(worker.state(), WorkerState::kJoined);
  const auto wanted = wants<FetchWeights>();
  ASSERT_EQ(wanted.size(), 1u);
  EXPECT_EQ(wanted[0].epoch, 3);
}

TEST_F(WorkerTest, AnotherBuildIsFinal) {
  worker.tick(now);
  hear(Refusal{RefusalReason::kOtherBuild, "b1 is not b2"});
  EXPECT_EQ(worker.state(), WorkerState::kTurnedAway);
  EXPECT_EQ(worker.refusal(), "b1 is not b2");
  worker.take_outbox();
  worker.tick(now + 100'000);
  EXPECT_THAT(worker.take_outbox(), IsEmpty());
}

TEST_F(WorkerTest, LeasesThatItsWeightsDoNotFitAreHandedBack) {
  be_ready(4);
  hear(lease(1, 5));        // too old weights
  hear(lease(2, 3, true));  // exactly 3
  hear(lease(3, 3));
  EXPECT_EQ(said<HandBack>().size(), 2u);
  const auto started = wants<StartLease>();
  ASSERT_EQ(started.size(), 1u);
  EXPECT_EQ(started[0].lease.id, 3);
  hear(lease(3, 3));  // twice the same
  EXPECT_THAT(wants<StartLease>(), IsEmpty());
}

TEST_F(WorkerTest, AResultIsSentUntilItIsAcknowledged) {
  be_ready();
  hear(lease(1));
  worker.finished(1, std::vector<Completion>(2), now);
  ASSERT_EQ(said<GroupResult>().size(), 1u);
  now += 1000;
  worker.tick(now);
  const auto again = said<GroupResult>();
  ASSERT_EQ(again.size(), 1u);
  EXPECT_EQ(again[0].serial, 10);
  EXPECT_THAT(said<Heartbeat>().back().leases, ElementsAre(1));
  hear(Ack{1, ResultVerdict::kDuplicate});
  now += 1000;
  worker.tick(now);
  EXPECT_THAT(said<GroupResult>(), IsEmpty());
  EXPECT_EQ(worker.num_held(), 0);
}

TEST_F(WorkerTest, NewWeightsWaitUntilNothingIsGenerated) {
  be_ready();
  hear(lease(1));
  hear(WeightsAvailable{1});
  EXPECT_EQ(wants<FetchWeights>().size(), 1u);
  said<Heartbeat>();
  worker.fetched(3, 1, now);
  EXPECT_THAT(wants<UseWeights>(), IsEmpty());
  EXPECT_EQ(said<Heartbeat>().back().credits, 0);  // nothing more before the swap
  worker.finished(1, std::vector<Completion>(1), now);
  EXPECT_EQ(wants<UseWeights>().at(0).version, 1);
  const Heartbeat after = said<Heartbeat>().back();
  EXPECT_EQ(after.version, 1);
  EXPECT_EQ(after.credits, 2);
}

TEST_F(WorkerTest, NewWeightsDoNotWaitForRewards) {
  be_ready();
  hear(lease(1));
  hear(lease(2));
  hear(WeightsAvailable{1});
  worker.fetched(3, 1, now);
  worker.generated(1, now);
  EXPECT_THAT(wants<UseWeights>(), IsEmpty());
  worker.generated(2, now);
  EXPECT_EQ(wants<UseWeights>().at(0).version, 1);
  const Heartbeat swapped = said<Heartbeat>().back();
  EXPECT_EQ(swapped.version, 1);
  EXPECT_THAT(swapped.leases, ElementsAre(1, 2));  // which go on
  hear(lease(3, 1));
  EXPECT_EQ(said<HandBack>().size(), 1u);  // the groups that are scored count
  worker.finished(1, std::vector<Completion>(1), now);
  EXPECT_EQ(said<GroupResult>().size(), 1u);
  hear(CancelLease{2});
  wants<StartLease>();
  EXPECT_EQ(wants<StopLease>().at(0).lease, 2);
}

class InFlightWorkerTest : public WorkerTest {
 protected:
  InFlightWorkerTest() : WorkerTest(true) {}
};

TEST_F(InFlightWorkerTest, NewWeightsAreUsedAtOnceButForExactLeases) {
  be_ready();
  hear(lease(1));
  hear(WeightsAvailable{1});
  worker.fetched(3, 1, now);
  EXPECT_EQ(wants<UseWeights>().at(0).version, 1);
  hear(lease(2, 1, true));
  hear(WeightsAvailable{2});
  worker.fetched(3, 2, now);
  EXPECT_THAT(wants<UseWeights>(), IsEmpty());
  EXPECT_EQ(wants<StopLease>().at(0).lease, 2);
  worker.handed_back(2, {}, now);
  EXPECT_EQ(wants<UseWeights>().at(0).version, 2);
}

TEST_F(WorkerTest, AFailedFetchIsTriedAgainLater) {
  join();
  EXPECT_EQ(wants<FetchWeights>().size(), 1u);
  worker.fetch_failed(now);
  worker.tick(now);
  EXPECT_THAT(wants<FetchWeights>(), IsEmpty());
  worker.tick(now + 100);
  EXPECT_EQ(wants<FetchWeights>().size(), 1u);
}

TEST_F(WorkerTest, ANewTrainersEpochEndsEverythingOfTheOld) {
  be_ready(7);
  hear(lease(1));
  wants<StartLease>();
  join(4, 5);
  EXPECT_EQ(wants<ForgetLease>().at(0).lease, 1);
  EXPECT_EQ(worker.version(), -1);  // its version 5 need not be ours
  EXPECT_EQ(wants<FetchWeights>().at(0).epoch, 4);
  worker.fetched(3, 8, now);  // of the old one, on its way until now
  EXPECT_THAT(wants<UseWeights>(), IsEmpty());
  hear(lease(9), 3);
  EXPECT_THAT(wants<StartLease>(), IsEmpty());
}

TEST_F(WorkerTest, ASilentHubIsLookedForAndLeasesGoOnMeanwhile) {
  be_ready();
  hear(lease(1));
  now += 5000;
  worker.tick(now);
  EXPECT_EQ(worker.state(), WorkerState::kConnecting);
  now += 100;
  worker.tick(now);
  EXPECT_EQ(said<Hello>().size(), 1u);
  EXPECT_THAT(wants<ForgetLease>(), IsEmpty());
  join();
  EXPECT_THAT(said<Heartbeat>().back().leases, ElementsAre(1));
}

TEST_F(WorkerTest, LeavingHandsEverythingBack) {
  be_ready();
  hear(lease(1));
  hear(lease(2));
  worker.finished(2, std::vector<Completion>(1), now);
  worker.leave();
  EXPECT_EQ(wants<StopLease>().at(0).lease, 1);
  EXPECT_NE(worker.state(), WorkerState::kDone);
  worker.handed_back(1, std::vector<Completion>(1), now);
  EXPECT_EQ(said<HandBack>().at(0).lease, 1);
  EXPECT_EQ(said<Goodbye>().size(), 1u);
  EXPECT_EQ(worker.state(), WorkerState::kDone);
}

}  // namespace
}  // namespace temper
