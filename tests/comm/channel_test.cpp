#include "comm/channel.h"

#include <gtest/gtest.h>

#include <thread>

#include "core/error.h"
#include "core/rng.h"
#include "tests/comm/channel_fixture.h"

namespace temper {
namespace {

std::string random_bytes(size_t size, uint64_t seed) {
  SplitMix64 random(seed);
  std::string bytes(size, '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.next());
  return bytes;
}

class Channel : public testing::TestWithParam<bool> {  // true: with keys
 protected:
  Channel() { settings_.allow_plain_text = !GetParam(); }
  std::unique_ptr<ChannelServer> serve(const std::string& address = kAnyPort) {
    return std::make_unique<ChannelServer>(address, GetParam() ? std::optional(keys_.server()) : std::nullopt,
                                           settings_);
  }
  std::unique_ptr<ChannelClient> connect(const ChannelServer& server) {
    return std::make_unique<ChannelClient>(server.address(), GetParam() ? std::optional(keys_.client()) : std::nullopt,
                                           settings_);
  }
  TestKeys keys_;
  ChannelSettings settings_ = test_settings();
};

TEST_P(Channel, MessagesGoBothWaysAsTheyWere) {
  const auto server = serve();
  const auto client = connect(*server);
  const PeerId peer = open_channel(*server, *client);
  EXPECT_EQ(server->public_key_of(peer), GetParam() ? keys_.worker.public_key : "");
  for (const size_t size : {size_t{0}, size_t{1}, size_t{29}, size_t{4096}, size_t{1} << 20}) {
    const std::string up = random_bytes(size, size + 1), down = random_bytes(size, size + 2);
    ASSERT_EQ(client->send(kHello, up), SendResult::kSent);
    const auto at_server = server->receive(patience());
    ASSERT_TRUE(at_server);
    EXPECT_EQ(at_server->peer, peer);
    EXPECT_EQ(at_server->type, kHello);
    EXPECT_EQ(at_server->payload(), up);
    const std::string_view parts[] = {std::string_view(down).substr(0, size / 3),
                                      std::string_view(down).substr(size / 3)};
    ASSERT_EQ(server->send(peer, kData, parts), SendResult::kSent);
    const auto at_client = client->receive(patience());
    ASSERT_TRUE(at_client);
    EXPECT_EQ(at_client->type, kData);
    EXPECT_EQ(at_client->payload(), down);
  }
  EXPECT_EQ(server->counters().refused_in_total(), 0);
  EXPECT_EQ(client->counters().refused_in_total(), 0);
}

TEST_P(Channel, NobodyHasMoreUnderWayThanTheWindow) {
  const auto server = serve();
  const auto client = connect(*server);
  const PeerId peer = open_channel(*server, *client);
  const std::string payload = random_bytes(100'000, 1);
  const int64_t frame = 100'000 + static_cast<int64_t>(kFrameHeaderBytes);
  int64_t sent = 0;
  while (client->send(kData, payload) == SendResult::kSent) ++sent;
  EXPECT_EQ(sent, settings_.window_bytes / frame);
  sent = 0;
  while (server->send(peer, kData, payload) == SendResult::kSent) ++sent;
  EXPECT_EQ(sent, settings_.window_bytes / frame);
  // Taking messages makes room again, at both ends, for several times the window.
  int64_t at_server = 0, at_client = 0;
  run_until(
      *server, *client,
      [&] {
        while (server->send(peer, kData, payload) == SendResult::kSent) {
        }
        while (client->send(kData, payload) == SendResult::kSent) {
        }
        return at_server >= 200 && at_client >= 200;
      },
      [&](ChannelMessage message) {
        EXPECT_EQ(message.payload(), payload);
        ++at_server;
      },
      [&](ChannelMessage message) {
        EXPECT_EQ(message.payload(), payload);
        ++at_client;
      });
}

TEST_P(Channel, CreditComesBackWithoutTrafficTheOtherWay) {
  const auto server = serve();
  const auto client = connect(*server);
  open_channel(*server, *client);
  const std::string payload = random_bytes(50'000, 1);
  int64_t sent = 0, taken = 0;
  const auto fill = [&] {
    while (sent < 300 && client->send(kData, payload) == SendResult::kSent) ++sent;
  };
  fill();
  EXPECT_LT(sent, 300);
  run_until(
      *server, *client,
      [&] {
        fill();
        return taken == 300;
      },
      [&](ChannelMessage) { ++taken; });
}

TEST_P(Channel, CreditEndsTheWaitOfAServerThatHadNone) {
  const auto server = serve();
  const auto client = connect(*server);
  const PeerId peer = open_channel(*server, *client);
  const std::string payload = random_bytes(100'000, 1);
  while (server->send(peer, kData, payload) == SendResult::kSent) {
  }
  std::thread taker([&] {
    for (int i = 0; i < 30; ++i) client->receive(patience());
  });
  EXPECT_FALSE(server->receive(patience()));
  EXPECT_EQ(server->send(peer, kData, payload), SendResult::kSent);
  taker.join();
}

TEST_P(Channel, MessagesBeyondTheOtherEndsSizeAreNotSent) {
  const auto server = serve();
  const auto client = connect(*server);
  const PeerId peer = open_channel(*server, *client);
  EXPECT_THROW(client->send(kData, std::string(static_cast<size_t>(settings_.window_bytes), 'x')), CommError);
  EXPECT_EQ(server->send(peer, kData, std::string(static_cast<size_t>(settings_.window_bytes), 'x')),
            SendResult::kGone);
}

TEST_P(Channel, APeerThatDiesIsToldAndComesBackAsAnother) {
  const auto server = serve();
  auto client = connect(*server);
  const PeerId first = open_channel(*server, *client);
  client.reset();
  const auto closed = server->receive(patience());
  ASSERT_TRUE(closed);
  EXPECT_EQ(closed->type, kClosed);
  EXPECT_EQ(closed->peer, first);
  EXPECT_EQ(server->send(first, kData, "x"), SendResult::kGone);
  EXPECT_EQ(server->num_peers(), 0);
  client = connect(*server);
  const PeerId second = open_channel(*server, *client);
  EXPECT_NE(second, first);
  EXPECT_EQ(server->send(second, kData, "x"), SendResult::kSent);
  EXPECT_EQ(client->receive(patience())->payload(), "x");
}

TEST_P(Channel, AServerThatReturnsIsFoundAgain) {
  auto server = serve();
  const std::string address = server->address();
  const auto client = connect(*server);
  open_channel(*server, *client);
  server.reset();
  const auto closed = client->receive(patience());
  ASSERT_TRUE(closed);
  EXPECT_EQ(closed->type, kClosed);
  EXPECT_FALSE(client->is_open());
  EXPECT_EQ(client->send(kData, "x"), SendResult::kGone);
  EXPECT_FALSE(client->receive(moment()));
  EXPECT_NE(client->refusal(), "");
  server = serve(address);
  open_channel(*server, *client);
  EXPECT_EQ(client->refusal(), "");
  EXPECT_EQ(client->send(kHello, "again"), SendResult::kSent);
  EXPECT_EQ(server->receive(patience())->payload(), "again");
}

TEST_P(Channel, APeerThatIsClosedOpensAnew) {
  const auto server = serve();
  const auto client = connect(*server);
  const PeerId first = open_channel(*server, *client);
  server->refuse(first, "a group without completions");
  EXPECT_EQ(server->counters().refused[static_cast<size_t>(FrameFault::kPayload)], 1);
  const auto closed = client->receive(patience());
  ASSERT_TRUE(closed);
  EXPECT_EQ(closed->type, kClosed);
  EXPECT_GT(open_channel(*server, *client), first);
}

TEST_P(Channel, AnotherThreadWakesTheReceiver) {
  const auto server = serve();
  const auto client = connect(*server);
  open_channel(*server, *client);
  std::thread waker([&] {
    server->wake();
    client->wake();
  });
  EXPECT_FALSE(server->receive(patience()));
  EXPECT_FALSE(client->receive(patience()));
  waker.join();
}

INSTANTIATE_TEST_SUITE_P(Wires, Channel, testing::Bool(),
                         [](const auto& with_keys) { return with_keys.param ? "Ciphered" : "PlainText"; });

TEST(ChannelAddress, PlainTextMustBeAskedForAndStaysOnLoopback) {
  ChannelSettings settings = test_settings();
  const auto message_of = [&](const std::string& address, const ChannelSettings& with) -> std::string {
    try {
      const ChannelServer server(address, std::nullopt, with);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "";
  };
  EXPECT_NE(message_of(kAnyPort, settings).find("key folder"), std::string::npos);
  EXPECT_THROW(ChannelClient("tcp://127.0.0.1:5", std::nullopt, settings), ConfigError);
  settings.allow_plain_text = true;
  EXPECT_EQ(message_of(kAnyPort, settings), "");
  EXPECT_NE(message_of("tcp://192.0.2.1:*", settings).find("plain text may not leave"), std::string::npos);
  EXPECT_THROW(ChannelClient("tcp://192.0.2.1:5", std::nullopt, settings), ConfigError);
  EXPECT_THROW(ChannelClient("tcp://127.example.org:5", std::nullopt, settings), ConfigError);
  settings.allow_all_interfaces = true;
  EXPECT_NE(message_of("tcp://*:*", settings).find("plain text may not leave"), std::string::npos);
}

TEST(ChannelAddress, EveryInterfaceMustBeAskedFor) {
  const TestKeys keys;
  ChannelSettings settings = test_settings();
  for (const char* address : {"tcp://*:*", "tcp://0.0.0.0:*", "tcp://0:*", "tcp://[::]:*"})
    EXPECT_THROW(ChannelServer(address, keys.server(), settings), ConfigError) << address;
  settings.allow_all_interfaces = true;
  EXPECT_NO_THROW(ChannelServer("tcp://*:*", keys.server(), settings));
}

TEST(ChannelAddress, WhatIsNoAddressIsNamed) {
  const TestKeys keys;
  for (const char* address : {"127.0.0.1:5", "tcp://:5", "tcp://127.0.0.1", "tcp://127.0.0.1:", "ipc:///tmp/x"})
    EXPECT_THROW(ChannelServer(address, keys.server(), test_settings()), ConfigError) << address;
  EXPECT_THROW(ChannelServer("tcp://192.0.2.1:*", keys.server(), test_settings()), CommError);  // not of this machine
}

}  // namespace
}  // namespace temper
