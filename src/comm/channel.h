// The wire between a hub and its workers, and between weight publishers and their readers: frames (comm/frame.h) over
// ZeroMQ, ROUTER at the server, DEALER at the client, ciphered and authenticated by CURVE. A message arrives whole,
// once and in order, or its connection is closed and both ends are told; nothing is kept for a peer that is gone.
//
// No queue grows without bound: a peer may have `window_bytes` under way to us that we have not taken (byte credits,
// told with every frame), a frame has a greatest size, and a peer that does not keep to its credit fills `queue_frames`
// frames and then its own socket. send() never blocks and never queues beyond that: it says so, and the caller keeps
// the message.
//
// Threads: one thread constructs, calls and destroys a channel; wake() alone may come from any. A server has a thread
// of its own for key checks and connection events (comm/channel_guard.h), both ends have ZeroMQ's.
#pragma once
#include <array>
#include <chrono>
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "comm/channel_keys.h"
#include "comm/frame.h"
#include "comm/zmq_socket.h"
#include "core/rng.h"

namespace temper {

// One connection of one client, numbered by the server from 1; a client that comes back has a new one.
using PeerId = int64_t;

// Types below kFirstApplicationType; the first two reach the caller, without payload.
constexpr uint16_t kOpened = 1;  // first message of a connection, at both ends
constexpr uint16_t kClosed = 2;  // last one: what was under way is lost
constexpr uint16_t kCredit = 3;
constexpr uint16_t kReset = 4;    // the server does not know this connection: open it again
constexpr uint16_t kRefused = 5;  // the server speaks another protocol version

// Whether tcp://HOST:PORT is of this machine alone. ConfigError where it is no such address.
bool is_loopback(const std::string& address);

struct ChannelSettings {
  uint16_t last_type = UINT16_MAX;       // application types above it are refused
  int64_t max_payload_bytes = 16 << 20;  // of one frame that comes in
  int64_t window_bytes = 64 << 20;       // at least twice the payload
  int queue_frames = 64;                 // high-water mark of a peer, each way
  int io_threads = 1;
  std::chrono::milliseconds handshake_timeout{5000};
  std::chrono::milliseconds heartbeat{5000};     // a peer that is silent three times as long is closed
  std::chrono::milliseconds min_reconnect{100};  // doubled up to the next, each with jitter
  std::chrono::milliseconds max_reconnect{5000};
  std::chrono::milliseconds linger{1000};  // for what is still to be sent when the channel is destroyed
  bool allow_plain_text = false;           // without keys; on loopback alone
  bool allow_all_interfaces = false;       // server: 0.0.0.0 and the like
};

enum class SendResult {
  kSent,
  kNoCredit,  // the other end has not taken enough yet: try again after the next receive(), which ends when it has
  kGone,      // there is no such connection (any more)
};

// A message and the memory that it lies in.
class ChannelMessage {
 public:
  ChannelMessage(PeerId from, uint16_t frame_type) : peer(from), type(frame_type) {}
  ChannelMessage(PeerId from, uint16_t frame_type, ZmqMessage frame)
      : peer(from), type(frame_type), frame_(std::move(frame)) {}
  std::string_view payload() const {  // valid as long as the message
    const std::string_view bytes = frame_.bytes();
    return bytes.size() > kFrameHeaderBytes ? bytes.substr(kFrameHeaderBytes) : std::string_view();
  }
  PeerId peer;  // client: 0
  uint16_t type;

 private:
  ZmqMessage frame_;
};

struct ChannelCounters {
  int64_t frames_sent = 0, frames_received = 0;  // of the application
  int64_t bytes_sent = 0, bytes_received = 0;    // their payloads
  std::array<int64_t, kNumFrameFaults> refused{};
  // Server, from connection events:
  int64_t connections = 0, handshakes_failed = 0, keys_refused = 0;

  int64_t refused_in_total() const;
};

// What one end of a connection counts; bytes of frames, headers included, since it was opened.
struct ChannelCredit {
  uint64_t window = 0;             // the other end's
  uint64_t sent = 0, told_us = 0;  // by us; of that, what the other end says it has taken
  uint64_t taken = 0, told = 0;    // by us of its frames; of that, what it has been told

  bool may_send(uint64_t bytes) const { return sent - told_us + bytes <= window; }
  bool should_tell(int64_t own_window) const { return taken - told >= static_cast<uint64_t>(own_window) / 4; }
  bool learn(uint64_t taken_bytes) {  // false: a lie
    if (taken_bytes > sent || taken_bytes < told_us) return false;
    told_us = taken_bytes;
    return true;
  }
};

class ChannelGuard;

class ChannelServer {
 public:
  // address: tcp://HOST:PORT with an address or interface of this machine; port * for a free one. Without keys: plain
  // text, which must be allowed. ConfigError where a setting forbids it, CommError where it cannot be bound.
  ChannelServer(const std::string& address, const std::optional<ServerKeys>& keys, const ChannelSettings& settings);
  ~ChannelServer();

  const std::string& address() const { return address_; }  // with the port
  // The payload is the parts, one after another. Reaching a peer that has just gone may still say kSent.
  SendResult send(PeerId peer, uint16_t type, std::span<const std::string_view> parts);
  SendResult send(PeerId peer, uint16_t type, std::string_view payload) { return send(peer, type, {&payload, 1}); }
  // Nothing at the deadline, after wake(), when a signal came, or when a peer without credit has taken something.
  std::optional<ChannelMessage> receive(std::chrono::steady_clock::time_point deadline);
  void wake() { wake_.raise(); }
  // The payload of a message of this peer was not what its type says: counted, and the peer is closed.
  void refuse(PeerId peer, const std::string& why);
  // Forgets it (kClosed does not come). If it still lives it learns so with its next frame and opens anew.
  void close(PeerId peer);
  void allow(const std::string& public_key);  // one more client
  // The client's public key as the handshake proved it; empty in plain text.
  std::string public_key_of(PeerId peer) const;
  int64_t num_peers() const { return static_cast<int64_t>(peers_.size()); }
  ChannelCounters counters() const;

 private:
  struct Peer {
    std::string routing_id, public_key;
    int file = -1;  // of its connection, as the events name it
    ChannelCredit credit;
    bool wants_credit = false;  // send() had none for it
  };
  using Peers = std::unordered_map<PeerId, Peer>;

  std::optional<ChannelMessage> take();  // the next message that is there
  std::optional<ChannelMessage> accept(std::string_view routing_id, ZmqMessage frame);
  std::optional<ChannelMessage> open(std::string_view routing_id, const DecodedFrame& frame, const ZmqMessage& message);
  void note_fault(FrameFault fault, std::string_view routing_id, const std::string& why);
  ZmqSend send_frame(std::string_view routing_id, ChannelCredit* credit, uint16_t type,
                     std::span<const std::string_view> parts);
  void probe_disconnected();
  void forget(Peers::iterator peer);

  ChannelSettings settings_;
  std::string address_;
  ZmqContext context_;
  WakeUp wake_;
  std::unique_ptr<ZmqSocket> router_;
  std::unique_ptr<ChannelGuard> guard_;  // watches router_, so it goes first
  Peers peers_;
  std::unordered_map<std::string, PeerId> by_routing_id_;
  std::unordered_multimap<int, PeerId> by_file_;
  std::vector<PeerId> closed_;  // to be told
  PeerId last_peer_ = 0;
  bool credit_came_ = false;  // to a peer that wanted it
  ChannelCounters counters_;
};

class ChannelClient {
 public:
  // Connects in the background, and again whenever the connection is lost, with a delay that doubles and jitters.
  // ConfigError where a setting forbids it. context: of several clients, which share its threads and go before it.
  ChannelClient(const std::string& address, const std::optional<ClientKeys>& keys, const ChannelSettings& settings,
                const ZmqContext* context = nullptr);
  ~ChannelClient();

  SendResult send(uint16_t type, std::span<const std::string_view> parts);
  SendResult send(uint16_t type, std::string_view payload) { return send(type, {&payload, 1}); }
  // As the server's. kOpened comes whenever the server has answered: what it should know must be told (again) then.
  std::optional<ChannelMessage> receive(std::chrono::steady_clock::time_point deadline);
  void wake() { wake_.raise(); }
  bool is_open() const { return open_; }
  // For who waits for several clients at once. next(): a message that is there already. Connections begin and end in
  // receive() alone, which must be called now and then. file(): readable when next() may have something that it had
  // not before the last send(); another one for each connection, -1 between them.
  std::optional<ChannelMessage> next();
  int file() const { return dealer_ ? dealer_->file() : -1; }
  // Why the server does not let us in, as far as it is known: a key that is not on its list, another protocol version,
  // no answer. Empty while the connection is open.
  std::string refusal() const;
  const ChannelCounters& counters() const { return counters_; }

 private:
  void connect();
  void disconnect();
  void see_events();
  std::optional<ChannelMessage> take();
  std::optional<ChannelMessage> accept(ZmqMessage frame);
  ZmqSend send_frame(uint16_t type, std::span<const std::string_view> parts);

  ChannelSettings settings_;
  std::string address_;
  std::optional<ClientKeys> keys_;
  std::optional<ZmqContext> own_context_;
  const ZmqContext& context_;
  WakeUp wake_;
  std::unique_ptr<ZmqSocket> dealer_, monitor_;  // null between a lost connection and the next attempt
  int64_t attempt_ = 0;
  bool open_ = false;
  bool lost_ = false;                               // the connection is gone; what came before is read first
  bool closed_ = false;                             // to be told
  int failures_ = 0;                                // attempts since the connection was open
  std::chrono::steady_clock::time_point retry_at_;  // where dealer_ is null
  SplitMix64 jitter_;
  std::string refusal_;
  ChannelCredit credit_;
  ChannelCounters counters_;
};

}  // namespace temper
