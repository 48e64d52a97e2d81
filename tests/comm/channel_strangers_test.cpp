// Peers without a key, with the wrong one, and authorised ones that lie.
#include <arpa/inet.h>
#include <gtest/gtest.h>
#include <sys/socket.h>
#include <unistd.h>

#include <atomic>
#include <cstdio>
#include <cstdlib>
#include <thread>

#include "comm/channel.h"
#include "core/error.h"
#include "core/system_memory.h"
#include "tests/comm/channel_fixture.h"

namespace temper {
namespace {

class ChannelStrangers : public testing::Test {
 protected:
  // Works until done(): nothing may come from the stranger.
  void serve_until(const std::function<bool()>& done) {
    const auto end = patience();
    while (!done() && std::chrono::steady_clock::now() < end) EXPECT_FALSE(server_.receive(moment()));
    ASSERT_TRUE(done());
  }
  int64_t refused(FrameFault fault) const { return server_.counters().refused[static_cast<size_t>(fault)]; }

  TestKeys keys_;
  ChannelServer server_{kAnyPort, keys_.server(), test_settings()};
};

TEST_F(ChannelStrangers, WithoutAKeyNothingGetsPastTheHandshake) {
  RawClient stranger(server_.address(), nullptr);
  stranger.send(raw_opening(1 << 20));
  stranger.send(raw_frame(kHello, "let me in"));
  serve_until([&] { return server_.counters().handshakes_failed > 0; });
  EXPECT_EQ(server_.counters().connections, 0);
  EXPECT_EQ(server_.num_peers(), 0);
}

TEST_F(ChannelStrangers, WithTheWrongServerKeyNothingGetsPastTheHandshake) {
  const ClientKeys wrong{keys_.worker, make_key_pair().public_key};
  ChannelClient client(server_.address(), wrong, test_settings());
  const auto end = patience();
  while (server_.counters().handshakes_failed == 0 && std::chrono::steady_clock::now() < end) {
    EXPECT_FALSE(client.receive(moment()));
    EXPECT_FALSE(server_.receive(moment()));
  }
  EXPECT_GT(server_.counters().handshakes_failed, 0);
  EXPECT_EQ(server_.counters().connections, 0);
  EXPECT_NE(client.refusal(), "");
}

TEST_F(ChannelStrangers, AKeyThatIsNotOnTheListIsRefusedAndToldSo) {
  const ClientKeys unlisted{make_key_pair(), keys_.hub.public_key};
  ChannelClient client(server_.address(), unlisted, test_settings());
  const auto refused_by_key = [&] { return client.refusal().find("not on the hub's list") != std::string::npos; };
  const auto end = patience();
  while (!refused_by_key() && std::chrono::steady_clock::now() < end) {
    EXPECT_FALSE(client.receive(moment()));
    EXPECT_FALSE(server_.receive(moment()));
  }
  EXPECT_TRUE(refused_by_key()) << client.refusal();
  EXPECT_GT(server_.counters().keys_refused, 0);
  EXPECT_EQ(server_.num_peers(), 0);
  server_.allow(unlisted.own.public_key);  // and let in once it is
  open_channel(server_, client);
  EXPECT_EQ(server_.num_peers(), 1);
}

TEST_F(ChannelStrangers, FramesThatLieAreRefusedAndCounted) {
  const ClientKeys keys = keys_.client();
  RawClient liar(server_.address(), &keys);
  liar.send(raw_frame(kHello, "before opening"));
  serve_until([&] { return refused(FrameFault::kNotOpened) == 1; });
  EXPECT_EQ(decode_frame(liar.receive(), 100, kLastTestType).header.type, kReset);
  liar.send(raw_opening(1 << 20));
  ASSERT_EQ(server_.receive(patience())->type, kOpened);
  const auto expect_fault = [&](FrameFault fault) {
    const int64_t before = refused(fault);
    serve_until([&] { return refused(fault) == before + 1; });
  };
  liar.send("");
  expect_fault(FrameFault::kShort);
  liar.send("TMPR");
  expect_fault(FrameFault::kShort);
  liar.send(std::string(100, 'x'));
  expect_fault(FrameFault::kMagic);
  liar.send(raw_frame(kHello, "x", 0, kProtocolVersion + 1));
  expect_fault(FrameFault::kVersion);
  liar.send(raw_frame(kLastTestType + 1, "x"));
  expect_fault(FrameFault::kType);
  liar.send(raw_frame(kReset, ""));
  expect_fault(FrameFault::kType);
  std::string frame = raw_frame(kHello, "payload");
  liar.send(frame.substr(0, frame.size() - 1));
  expect_fault(FrameFault::kSize);
  frame.back() = 'X';
  liar.send(frame);
  expect_fault(FrameFault::kChecksum);
  liar.send(raw_frame(kHello, "x", 1'000'000));  // took more than was ever sent
  expect_fault(FrameFault::kCredit);
  liar.send(raw_opening(1 << 20));
  expect_fault(FrameFault::kNotOpened);
  liar.send(raw_frame(kHello, "x"), true);
  liar.send("another part", true);
  liar.send("and another");
  expect_fault(FrameFault::kParts);
  EXPECT_EQ(server_.counters().frames_received, 0);
  liar.send(raw_frame(kHello, "the truth"));
  EXPECT_EQ(server_.receive(patience())->payload(), "the truth");
}

TEST_F(ChannelStrangers, AMessageLargerThanAllowedClosesItsConnection) {
  const ClientKeys keys = keys_.client();
  RawClient liar(server_.address(), &keys);
  liar.send(raw_opening(1 << 20));
  ASSERT_EQ(server_.receive(patience())->type, kOpened);
  liar.send(std::string(8 << 20, 'x'));
  EXPECT_EQ(server_.receive(patience())->type, kClosed);
}

TEST_F(ChannelStrangers, AnotherProtocolVersionIsNamedToTheClient) {
  // A server of the next version, as far as this client sees it: the answer to the opening carries its version.
  ZmqContext context(1);
  ZmqSocket router(context, ZmqKind::kRouter);
  router.set(ZMQ_LINGER, 0);
  router.bind(kAnyPort);
  ChannelSettings settings = test_settings();
  settings.allow_plain_text = true;
  ChannelClient client(router.last_address(), std::nullopt, settings);
  ZmqMessage routing_id, opening;
  const auto end = patience();
  while (!router.receive(routing_id) && std::chrono::steady_clock::now() < end) EXPECT_FALSE(client.receive(moment()));
  ASSERT_TRUE(router.receive(opening));
  router.send(routing_id.bytes(), true);
  router.send(raw_frame(kRefused, "", 0, kProtocolVersion + 6), false);
  while (client.refusal().find("version 7") == std::string::npos && std::chrono::steady_clock::now() < end)
    EXPECT_FALSE(client.receive(moment()));
  EXPECT_NE(client.refusal().find("version 7, this build 1"), std::string::npos) << client.refusal();
}

// A TCP connection with a few bytes that are no handshake, left open or closed.
void knock(const std::string& address, int number) {
  const int file = ::socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
  sockaddr_in to{};
  to.sin_family = AF_INET;
  to.sin_port = htons(static_cast<uint16_t>(std::stoi(address.substr(address.rfind(':') + 1))));
  to.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  if (::connect(file, reinterpret_cast<const sockaddr*>(&to), sizeof to) == 0) {
    // Nothing; noise; the greeting of ZMTP 3.0 with no mechanism.
    const std::string greeting = std::string("\xff\0\0\0\0\0\0\0\x01\x7f\x03\0NULL", 16) + std::string(48, '\0');
    const std::string noise = "GET / HTTP/1.1\r\n\r\n";
    const std::string& bytes = number % 3 == 0 ? greeting : noise;
    if (number % 3 != 2) [[maybe_unused]]
      const ssize_t written = ::write(file, bytes.data(), bytes.size());
  }
  ::close(file);
}

// TEMPER_KNOCKS=10000 for the figure of docs/security.md.
TEST_F(ChannelStrangers, ManyAttemptsWithoutAKeyCostTheGenuinePeersNothing) {
  const char* wanted = std::getenv("TEMPER_KNOCKS");
  const int knocks = wanted == nullptr ? 500 : std::atoi(wanted);
  ChannelClient genuine(server_.address(), keys_.client(), test_settings());
  const PeerId peer = open_channel(server_, genuine);
  reset_peak_rss();
  const int64_t before = peak_rss_bytes();
  std::atomic<bool> knocking = true;
  std::thread strangers([&] {
    for (int n = 0; n < knocks; ++n) knock(server_.address(), n);
    knocking = false;
  });
  int64_t asked = 0, answered = 0;
  const auto end = patience();
  while ((knocking || answered < 100) && std::chrono::steady_clock::now() < end) {
    if (asked == answered) {
      ASSERT_EQ(genuine.send(kHello, std::to_string(asked)), SendResult::kSent);
      ++asked;
    }
    const auto question = server_.receive(patience());
    ASSERT_TRUE(question);
    ASSERT_EQ(question->peer, peer);
    ASSERT_EQ(question->type, kHello);
    ASSERT_EQ(question->payload(), std::to_string(asked - 1));
    ASSERT_EQ(server_.send(peer, kData, question->payload()), SendResult::kSent);
    ASSERT_EQ(genuine.receive(patience())->payload(), std::to_string(asked - 1));
    ++answered;
  }
  strangers.join();
  EXPECT_EQ(answered, asked);
  EXPECT_GE(answered, 100);
  EXPECT_EQ(server_.num_peers(), 1);
  EXPECT_EQ(server_.counters().connections, 1);
  const double grown_mb = static_cast<double>(peak_rss_bytes() - before) / (1 << 20);
  printf("%d attempts without a key: %.1f MiB more memory at the peak, %ld exchanges of the genuine peer, none lost\n",
         knocks, grown_mb, static_cast<long>(answered));
  EXPECT_LT(grown_mb, 64);
}

}  // namespace
}  // namespace temper
