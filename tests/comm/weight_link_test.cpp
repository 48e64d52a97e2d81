// Weights by links: over pairs of threads here, over NCCL in nccl_weights.cpp (label gpu).
#include "comm/weight_link.h"

#include <ATen/ATen.h>

#include <atomic>
#include <thread>

#include "comm/thread_communicator.h"
#include "core/error.h"
#include "tests/comm/weight_fixture.h"

namespace temper {
namespace {

using namespace std::chrono_literals;

// Links between threads of this process. What goes wrong with them is set before they are used.
class ThreadLinks : public WeightLinks {
 public:
  std::atomic<bool> can_connect = true;
  std::atomic<int> num_connected = 0;    // ends
  std::atomic<int> breaks_after = 1000;  // calls of send()
  std::atomic<bool> spoils = false;      // a bit of what is received
  std::atomic<bool> stalls = false;      // the sender never sends
  std::chrono::milliseconds timeout = 20s;

  std::string new_id() override { return "thread link " + std::to_string(next_++); }
  std::unique_ptr<WeightLink> connect(const std::string& id, End end) override {
    if (!can_connect) throw CommError("no way from here to there.");
    const std::lock_guard lock(mutex_);
    auto& world = worlds_[id];
    if (!world) world = std::make_unique<ThreadWorld>(2, CommOptions{.timeout = timeout});
    ++num_connected;
    return std::make_unique<Link>(*this, make_weight_link(world->communicator(end == End::kSender ? 0 : 1), at::kCPU));
  }

 private:
  struct Link : WeightLink {
    Link(ThreadLinks& its_owner, std::unique_ptr<WeightLink> its_inner)
        : owner(its_owner), inner(std::move(its_inner)) {}
    void send(std::string_view bytes) override {
      if (owner.breaks_after-- <= 0) throw CommError("the cable is cut.");
      while (owner.stalls && !aborted) std::this_thread::sleep_for(1ms);
      inner->send(bytes);
    }
    void receive(std::span<char> bytes) override {
      inner->receive(bytes);
      if (owner.spoils) bytes.back() = static_cast<char>(bytes.back() ^ 4);
    }
    void abort(const std::string& why) override {
      aborted = true;
      inner->abort(why);
    }
    ThreadLinks& owner;
    std::atomic<bool> aborted = false;
    std::unique_ptr<WeightLink> inner;
  };

  std::atomic<int> next_ = 0;
  std::mutex mutex_;
  std::map<std::string, std::unique_ptr<ThreadWorld>> worlds_;
};

class WeightsByLink : public testing::TestWithParam<int> {  // ranks
 protected:
  WeightServerOptions server_options() const {
    WeightServerOptions options = TestTrainer::small_chunks();
    options.links = links;
    return options;
  }
  WeightClientOptions client_options() const {
    WeightClientOptions options;
    options.links = links;
    return options;
  }
  // The last of more than two ranks holds nothing.
  static int num_holders() { return GetParam() > 2 ? GetParam() - 1 : GetParam(); }

  const std::shared_ptr<ThreadLinks> links = std::make_shared<ThreadLinks>();
};

TEST_P(WeightsByLink, AreTheSameAsByMessages) {
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  for (PolicyVersion version = 0; version < 6; ++version) {
    trainer.publish(7, version);
    expect_version(client.fetch(7, version, patience()), 7, version);
  }
  const WeightClientCounters counters = client.counters();
  EXPECT_EQ(counters.link_parts, 6 * GetParam());
  EXPECT_EQ(counters.retries + counters.refused, 0);
  EXPECT_EQ(links->num_connected, 2 * num_holders()) << "each link is used again";
}

TEST_P(WeightsByLink, SeveralReadersHaveLinksOfTheirOwn) {
  TestTrainer trainer(GetParam(), server_options());
  trainer.publish(1, 4);
  std::vector<std::thread> readers;
  for (int reader = 0; reader < 3; ++reader)
    readers.emplace_back([&] {
      WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
      expect_version(client.fetch(1, 4, patience()), 1, 4);
      EXPECT_EQ(client.counters().link_parts, GetParam());
    });
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(links->num_connected, 3 * 2 * num_holders());
}

TEST_P(WeightsByLink, ComeAsMessagesWhereOneSideHasNoLinks) {
  for (const bool server_has : {false, true}) {
    TestTrainer trainer(GetParam(), server_has ? server_options() : TestTrainer::small_chunks());
    WeightClient client(trainer.endpoints(), trainer.keys().client(),
                        server_has ? WeightClientOptions() : client_options());
    trainer.publish(1, 0);
    expect_version(client.fetch(1, 0, patience()), 1, 0);
    EXPECT_EQ(client.counters().link_parts, 0);
  }
  EXPECT_EQ(links->num_connected, 0);
}

TEST_P(WeightsByLink, ComeAsMessagesWhereNoLinkCanBeMade) {
  links->can_connect = false;
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  for (PolicyVersion version = 0; version < 3; ++version) {
    trainer.publish(1, version);
    expect_version(client.fetch(1, version, patience()), 1, version);
  }
  EXPECT_GE(client.counters().retries, 1);
  EXPECT_LE(client.counters().retries, num_holders()) << "a link is tried once";
}

TEST_P(WeightsByLink, ComeAsMessagesOnceALinkBreaks) {
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  trainer.publish(1, 0);
  expect_version(client.fetch(1, 0, patience()), 1, 0);
  EXPECT_EQ(client.counters().link_parts, GetParam());
  links->breaks_after = 0;
  for (PolicyVersion version = 1; version < 4; ++version) {
    trainer.publish(1, version);
    expect_version(client.fetch(1, version, patience()), 1, version);
  }
  EXPECT_GE(client.counters().retries, 1);
}

TEST_P(WeightsByLink, ThatAreNotWhatWasAnnouncedAreRefused) {
  links->spoils = true;
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  trainer.publish(1, 0);
  try {
    client.fetch(1, 0, patience());
    FAIL() << "spoilt weights were taken";
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("the whole has checksum"));
  }
  EXPECT_EQ(client.current().version, -1);
  links->spoils = false;
  expect_version(client.fetch(1, 0, patience()), 1, 0);
}

TEST_P(WeightsByLink, AReaderThatGoesInTheMiddleHoldsNobodyUp) {
  TestTrainer trainer(GetParam(), server_options());
  trainer.publish(1, 0);
  links->stalls = true;
  {
    WeightClient leaver(trainer.endpoints(), trainer.keys().client(), client_options());
    EXPECT_THROW(leaver.fetch(1, 0, std::chrono::steady_clock::now() + 200ms), CommError);
    WeightClient by_messages(trainer.endpoints(), trainer.keys().client());
    expect_version(by_messages.fetch(1, 0, patience()), 1, 0);
  }
  links->stalls = false;
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  expect_version(client.fetch(1, 0, patience()), 1, 0);
  EXPECT_EQ(client.counters().link_parts, GetParam());
}

TEST_P(WeightsByLink, AnOtherEndThatIsSilentCostsItsTimeAlone) {
  links->timeout = 300ms;
  links->stalls = true;
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  trainer.publish(1, 0);
  expect_version(client.fetch(1, 0, patience()), 1, 0);
  EXPECT_GE(client.counters().retries, 1);
}

TEST_P(WeightsByLink, FollowATrainerThatIsStartedAgain) {
  TestTrainer trainer(GetParam(), server_options());
  WeightClient client(trainer.endpoints(), trainer.keys().client(), client_options());
  trainer.publish(1, 5);
  expect_version(client.fetch(1, 5, patience()), 1, 5);
  trainer.restart();
  trainer.publish(2, 3);
  expect_version(client.fetch(2, 3, patience()), 2, 3);
  const int64_t before = client.counters().link_parts;
  trainer.publish(2, 4);
  expect_version(client.fetch(2, 4, patience()), 2, 4);
  EXPECT_EQ(client.counters().link_parts, before + GetParam()) << "by links again";
}

INSTANTIATE_TEST_SUITE_P(Ranks, WeightsByLink, testing::Values(1, 3));

}  // namespace
}  // namespace temper
