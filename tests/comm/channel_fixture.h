// A server and clients on loopback for the tests of channels, and peers that do not keep to the rules.
#pragma once
#include <gtest/gtest.h>
#include <zmq.h>

#include <functional>
#include <memory>
#include <string>

#include "comm/channel.h"

namespace temper {

using namespace std::chrono_literals;
constexpr uint16_t kHello = 16, kData = 17, kLastTestType = 20;

// Far longer than anything takes here: reached only where something hangs.
inline std::chrono::steady_clock::time_point patience() { return std::chrono::steady_clock::now() + 60s; }
inline std::chrono::steady_clock::time_point moment() { return std::chrono::steady_clock::now() + 20ms; }

inline ChannelSettings test_settings() {
  ChannelSettings settings;
  settings.last_type = kLastTestType;
  settings.max_payload_bytes = 1 << 20;
  settings.window_bytes = 4 << 20;
  settings.min_reconnect = 5ms;
  settings.max_reconnect = 50ms;
  settings.linger = 200ms;
  return settings;
}

inline constexpr const char* kAnyPort = "tcp://127.0.0.1:*";

struct TestKeys {
  KeyPair hub = make_key_pair(), worker = make_key_pair();
  ServerKeys server() const { return {hub, {worker.public_key}}; }
  ClientKeys client() const { return {worker, hub.public_key}; }
};

// Lets the server and then the client work, by turns, until `done`.
inline void run_until(
    ChannelServer& server, ChannelClient& client, const std::function<bool()>& done,
    const std::function<void(ChannelMessage)>& at_server = [](ChannelMessage) {},
    const std::function<void(ChannelMessage)>& at_client = [](ChannelMessage) {}) {
  const auto end = patience();
  while (!done() && std::chrono::steady_clock::now() < end) {
    if (auto message = server.receive(std::chrono::steady_clock::now() + 2ms)) at_server(std::move(*message));
    if (auto message = client.receive(std::chrono::steady_clock::now() + 2ms)) at_client(std::move(*message));
  }
  ASSERT_TRUE(done());
}

// Opens the connection; the server's number of the client.
inline PeerId open_channel(ChannelServer& server, ChannelClient& client) {
  PeerId peer = 0;
  run_until(
      server, client, [&] { return peer != 0 && client.is_open(); },
      [&](ChannelMessage message) {
        if (message.type == kOpened) peer = message.peer;
      });
  return peer;
}

// A DEALER with whatever keys: a client that breaks rules.
class RawClient {
 public:
  RawClient(const std::string& address, const ClientKeys* keys) : context_(1), socket_(context_, ZmqKind::kDealer) {
    socket_.set(ZMQ_LINGER, 0);
    if (keys != nullptr) {
      socket_.set(ZMQ_CURVE_SERVERKEY, keys->server_public_key);
      socket_.set(ZMQ_CURVE_PUBLICKEY, keys->own.public_key);
      socket_.set(ZMQ_CURVE_SECRETKEY, keys->own.secret_key);
    }
    socket_.connect(address);
  }
  bool send(std::string_view bytes, bool more = false) { return socket_.send(bytes, more) == ZmqSend::kSent; }
  // What the server answers, waiting for it.
  std::string receive() {
    ZmqMessage message;
    const auto end = patience();
    while (!socket_.receive(message) && std::chrono::steady_clock::now() < end) wait_readable({&socket_}, {}, moment());
    return std::string(message.bytes());
  }

 private:
  ZmqContext context_;
  ZmqSocket socket_;
};

inline std::string raw_frame(uint16_t type, std::string_view payload, uint64_t taken_bytes = 0,
                             uint16_t version = kProtocolVersion) {
  std::string bytes(kFrameHeaderBytes, '\0');
  encode_header({.version = version,
                 .type = type,
                 .payload_bytes = payload.size(),
                 .taken_bytes = taken_bytes,
                 .checksum = frame_checksum(type, payload)},
                bytes.data());
  return bytes + std::string(payload);
}

inline std::string raw_opening(uint64_t window) {
  return raw_frame(kOpened, {reinterpret_cast<const char*>(&window), sizeof window});
}

}  // namespace temper
