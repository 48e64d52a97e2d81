// Servers and clients of the weight wire over loopback sockets with keys; what a server must not send is in
// weight_refusal_test.cpp.
#include <atomic>
#include <thread>

#include "comm/weight_messages.h"
#include "core/error.h"
#include "core/system_memory.h"
#include "tests/comm/weight_fixture.h"

namespace temper {
namespace {

std::string failure_of(WeightClient& client, int64_t epoch, PolicyVersion at_least,
                       std::chrono::steady_clock::time_point deadline) {
  try {
    client.fetch(epoch, at_least, deadline);
  } catch (const CommError& error) {
    return error.what();
  }
  return "";
}

class WeightChannel : public testing::TestWithParam<int> {};  // ranks

TEST_P(WeightChannel, VersionsComeWholeAndThenAsDeltasBitForBit) {
  TestTrainer trainer(GetParam());
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  EXPECT_EQ(client.current().version, -1);
  for (PolicyVersion version = 0; version < 6; ++version) {
    trainer.publish(7, version);
    expect_version(client.fetch(7, version, patience()), 7, version);
    expect_version(client.current(), 7, version);
  }
  const WeightClientCounters counters = client.counters();
  EXPECT_EQ(counters.fetches, 6);
  EXPECT_EQ(counters.full_parts, GetParam());
  EXPECT_EQ(counters.delta_parts, 5 * GetParam());
  EXPECT_EQ(counters.retries + counters.refused, 0);
  EXPECT_LT(counters.wire_bytes, counters.weight_bytes);
}

TEST_P(WeightChannel, WithoutDeltasEveryVersionComesWhole) {
  TestTrainer trainer(GetParam());
  WeightClientOptions options;
  options.deltas = false;
  WeightClient client(trainer.endpoints(), trainer.keys().client(), options);
  for (PolicyVersion version = 0; version < 3; ++version) {
    trainer.publish(1, version);
    expect_version(client.fetch(1, version, patience()), 1, version);
  }
  EXPECT_EQ(client.counters().delta_parts, 0);
}

TEST_P(WeightChannel, WhatIsHereIsNotFetchedAgain) {
  TestTrainer trainer(GetParam());
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 3);
  const char* bytes = client.fetch(1, 0, patience()).tensors.at("embed").bytes.data();
  EXPECT_EQ(client.fetch(1, 2, patience()).tensors.at("embed").bytes.data(), bytes);
  EXPECT_EQ(client.counters().fetches, 1);
}

TEST_P(WeightChannel, WhereTheBaseIsGoneTheWholeComes) {
  WeightServerOptions options = TestTrainer::small_chunks();
  options.keep_versions = 2;
  TestTrainer trainer(GetParam(), options);
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 0);
  client.fetch(1, 0, patience());
  for (PolicyVersion version = 1; version < 4; ++version) trainer.publish(1, version);
  expect_version(client.fetch(1, 3, patience()), 1, 3);
  EXPECT_EQ(client.counters().full_parts, 2 * GetParam());
}

TEST_P(WeightChannel, AReaderTwoVersionsBehindGetsDeltasFromWhatItHas) {
  TestTrainer trainer(GetParam());
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 0);
  client.fetch(1, 0, patience());
  trainer.publish(1, 1);
  trainer.publish(1, 2);
  expect_version(client.fetch(1, 2, patience()), 1, 2);
  EXPECT_EQ(client.counters().delta_parts, GetParam());
}

// Ranks publish at their own pace while two readers fetch all the time: what a fetch brings is one version.
TEST_P(WeightChannel, AFetchWhileVersionsComeAndGoIsOfOneVersion) {
  WeightServerOptions options = TestTrainer::small_chunks();
  options.keep_versions = 2;
  TestTrainer trainer(GetParam(), options);
  constexpr PolicyVersion kLast = 40;
  std::vector<std::thread> ranks, readers;
  for (int rank = 0; rank < GetParam(); ++rank)
    ranks.emplace_back([&, rank] {
      for (PolicyVersion version = 0; version <= kLast; ++version) {
        trainer.publish(static_cast<size_t>(rank), 1, version);
        std::this_thread::yield();
      }
    });
  for (int reader = 0; reader < 2; ++reader)
    readers.emplace_back([&, reader] {
      WeightClientOptions how;
      how.deltas = reader == 0;
      WeightClient client(trainer.endpoints(), trainer.keys().client(), how);
      for (PolicyVersion version = -1; version < kLast;) {
        const FetchedWeights& weights = client.fetch(1, version + 1, patience());
        EXPECT_GT(weights.version, version);
        version = weights.version;
        expect_version(weights, 1, version);
      }
      EXPECT_EQ(client.counters().refused, 0);
    });
  for (std::thread& thread : ranks) thread.join();
  for (std::thread& thread : readers) thread.join();
}

TEST_P(WeightChannel, ATrainerThatReturnsIsFoundWithItsNewEpoch) {
  TestTrainer trainer(GetParam());
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 5);
  client.fetch(1, 5, patience());
  trainer.restart();
  trainer.publish(2, 4);
  expect_version(client.fetch(2, 4, patience()), 2, 4);
  EXPECT_EQ(client.counters().delta_parts, 0);  // version 4 of another history
  EXPECT_NE(failure_of(client, 1, 6, patience()).find("epoch 1 are over"), std::string::npos);
  expect_version(client.current(), 2, 4);
}

TEST_P(WeightChannel, ARankThatDiesMidwayIsAskedAgain) {
  TestTrainer trainer(GetParam());
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 0);
  client.fetch(1, 0, patience());
  std::atomic<bool> fetched = false;
  std::thread reader([&] {
    expect_version(client.fetch(1, 1, patience()), 1, 1);  // blocks: not published yet
    fetched = true;
  });
  for (int i = 0; i < 3; ++i) {
    trainer.restart();
    trainer.publish(1, 0);
  }
  EXPECT_FALSE(fetched);
  trainer.publish(1, 1);
  reader.join();
}

INSTANTIATE_TEST_SUITE_P(Ranks, WeightChannel, testing::Values(1, 3),
                         [](const auto& ranks) { return std::to_string(ranks.param); });

TEST(WeightChannelEnds, ADeadlineNamesTheRankThatIsLate) {
  TestTrainer trainer(2);
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  trainer.publish(1, 0);
  client.fetch(1, 0, patience());
  trainer.publish(0, 1, 1);
  const std::string failure = failure_of(client, 1, 1, moment());
  EXPECT_NE(failure.find("rank 1 (tcp://"), std::string::npos) << failure;
  EXPECT_NE(failure.find("versions up to 0"), std::string::npos) << failure;
  trainer.publish(1, 1, 1);
  expect_version(client.fetch(1, 1, patience()), 1, 1);
}

TEST(WeightChannelEnds, AnotherThreadStopsAFetch) {
  TestTrainer trainer(1);
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  std::thread stopper([&] { client.stop(); });
  EXPECT_NE(failure_of(client, 1, 0, patience()).find("stopped"), std::string::npos);
  stopper.join();
}

TEST(WeightChannelEnds, AStrangersKeyGetsNothingUntilItIsAllowed) {
  TestTrainer trainer(1);
  trainer.publish(1, 0);
  const KeyPair stranger = make_key_pair();
  WeightClient client(trainer.endpoints(), ClientKeys{stranger, trainer.keys().hub.public_key});
  std::string failure;
  const auto end = patience();
  while (failure.find("not on the hub's list") == std::string::npos && std::chrono::steady_clock::now() < end)
    failure = failure_of(client, 1, 0, moment());
  EXPECT_NE(failure.find("not on the hub's list"), std::string::npos) << failure;
  trainer.server(0).allow(stranger.public_key);
  expect_version(client.fetch(1, 0, patience()), 1, 0);
}

TEST(WeightChannelEnds, VersionsRiseOrTheProgramIsWrong) {
  TestTrainer trainer(1);
  trainer.publish(1, 3);
  EXPECT_THROW(trainer.publish(1, 3), InvariantError);
  EXPECT_THROW(trainer.publish(0, 4), InvariantError);
  std::string two(2, '\0');
  EXPECT_THROW(trainer.server(0).publish(1, 4, {{"a", WeightDtype::kBf16, {2}, 0, 2, two}}), InvariantError);
  EXPECT_THROW(trainer.server(0).publish(1, 4, {{"a", WeightDtype::kInt8, {1}, 0, 2, two}}), InvariantError);
}

// A reader of its own making: asks, and takes what comes only when it is told to.
class SlowReader {
 public:
  SlowReader(const std::string& address, const TestKeys& keys) : channel_(address, keys.client(), settings()) {}
  ChannelMessage take(uint16_t type) {  // passes over others
    while (true) {
      auto message = channel_.receive(patience());
      if (!message || message->type == type) return std::move(message.value());
    }
  }
  void ask(int64_t request, int64_t epoch, PolicyVersion version) {
    EXPECT_EQ(channel_.send(kWeightRequest, encode(WeightRequest{request, epoch, version})), SendResult::kSent);
  }

 private:
  static ChannelSettings settings() {
    ChannelSettings settings = test_settings();
    settings.max_payload_bytes = 4000;
    settings.window_bytes = 9000;
    return settings;
  }
  ChannelClient channel_;
};

WeightServerOptions one_at_a_time() {
  WeightServerOptions options;
  options.chunk_bytes = 1000;
  options.max_transfers = 1;
  options.keep_versions = 1;
  return options;
}

// Weights of one tensor, of 1,000 chunks.
void publish_large(WeightServer& server, PolicyVersion version) {
  const std::string bytes(1'000'000, static_cast<char>(version));
  server.publish(1, version, {{"large", WeightDtype::kInt8, {1'000'000}, 0, 1'000'000, bytes}});
}

TEST(WeightChannelEnds, AVersionThatGoesWhileItIsSentIsSaidToBeGone) {
  TestTrainer trainer(1, one_at_a_time());
  publish_large(trainer.server(0), 0);
  SlowReader reader(trainer.endpoints()[0], trainer.keys());
  reader.take(kWeightOffer);
  reader.ask(1, 1, 0);
  reader.take(kWeightManifest);
  EXPECT_EQ(decode_weight_chunk(reader.take(kWeightChunk).payload()).index, 0);
  publish_large(trainer.server(0), 1);
  EXPECT_EQ(decode_weight_offer(reader.take(kWeightOffer).payload()).versions, std::vector<PolicyVersion>{1});
  EXPECT_EQ(decode_request_number(reader.take(kWeightGone).payload()), 1);
  reader.ask(2, 1, 1);
  EXPECT_EQ(decode_weight_manifest(reader.take(kWeightManifest).payload()).version, 1);
}

TEST(WeightChannelEnds, AReaderThatTakesNothingLosesItsTurnToTheNext) {
  WeightServerOptions options = one_at_a_time();
  options.stall_timeout = 50ms;
  TestTrainer trainer(1, options);
  publish_large(trainer.server(0), 0);
  SlowReader slow(trainer.endpoints()[0], trainer.keys());
  slow.take(kWeightOffer);
  slow.ask(1, 1, 0);
  slow.take(kWeightManifest);
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  EXPECT_EQ(client.fetch(1, 0, patience()).tensors.at("large").bytes, std::string(1'000'000, '\0'));
  EXPECT_EQ(trainer.server(0).counters().ended_transfers, 1);
  EXPECT_EQ(slow.take(kClosed).type, kClosed);
}

TEST(WeightChannelEnds, MemoryIsThatOfTheKeptVersions) {
  WeightServerOptions options;
  options.keep_versions = 2;
  TestTrainer trainer(1, options);
  constexpr int64_t kBytes = 8 << 20;
  constexpr int kVersions = 80;
  const std::string bytes(kBytes, 'x');
  WeightClient client(trainer.endpoints(), trainer.keys().client());
  reset_peak_rss();
  const int64_t before = peak_rss_bytes();
  for (PolicyVersion version = 0; version < kVersions; ++version) {
    trainer.server(0).publish(1, version, {{"large", WeightDtype::kInt8, {kBytes}, 0, kBytes, bytes}});
    if (version % 40 == 0) client.fetch(1, version, patience());
  }
  // Two kept, one that comes, two at the client; half of them all leaves room for what a sanitizer holds back.
  EXPECT_LT(peak_rss_bytes() - before, kVersions / 2 * kBytes);
}

}  // namespace
}  // namespace temper
