#include <zmq.h>

#include <numeric>
#include <utility>

#include "comm/channel.h"
#include "comm/channel_guard.h"
#include "comm/channel_socket.h"
#include "core/error.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

int file_of(const ZmqMessage& message) {
  const std::string text = message.property("__fd");  // as ZMQ_SRCFD
  return text.empty() ? -1 : std::atoi(text.c_str());
}

}  // namespace

int64_t ChannelCounters::refused_in_total() const {
  return std::accumulate(refused.begin(), refused.end(), int64_t{0});
}

ChannelServer::ChannelServer(const std::string& address, const std::optional<ServerKeys>& keys,
                             const ChannelSettings& settings)
    : settings_(settings), context_(settings.io_threads) {
  check_settings(settings);
  check_server_address(address, !keys, settings);
  raise_file_limit();  // the usual limit of 1,024 is less than a thousand workers and what else is open
  router_ = std::make_unique<ZmqSocket>(context_, ZmqKind::kRouter);
  set_common_options(*router_, settings);
  router_->set(ZMQ_ROUTER_MANDATORY, 1);  // else a message to a peer that is gone would vanish in silence
  router_->set(ZMQ_BACKLOG, 1024);
  if (keys) {
    router_->set(ZMQ_CURVE_SERVER, 1);
    router_->set(ZMQ_CURVE_SECRETKEY, keys->own.secret_key);
  }
  guard_ =
      std::make_unique<ChannelGuard>(context_, *router_, keys ? keys->allowed_clients : std::vector<std::string>());
  router_->bind(address);
  address_ = router_->last_address();
  check_server_address(address_, !keys, settings);  // a name may have meant every interface
}

ChannelServer::~ChannelServer() = default;

SendResult ChannelServer::send(PeerId id, uint16_t type, std::span<const std::string_view> parts) {
  TEMPER_CHECK(type >= kFirstApplicationType, "type {} is the channel's own", type);
  const auto peer = peers_.find(id);
  if (peer == peers_.end()) return SendResult::kGone;
  const uint64_t bytes = frame_bytes(parts);
  if (bytes > peer->second.credit.window / 2) {
    refuse(id, format("it takes {} bytes at most, a message for it has {}", peer->second.credit.window / 2, bytes));
    return SendResult::kGone;
  }
  if (!peer->second.credit.may_send(bytes)) {
    peer->second.wants_credit = true;
    return SendResult::kNoCredit;
  }
  switch (send_frame(peer->second.routing_id, &peer->second.credit, type, parts)) {
    case ZmqSend::kSent:
      peer->second.credit.sent += bytes;
      ++counters_.frames_sent;
      counters_.bytes_sent += static_cast<int64_t>(bytes - kFrameHeaderBytes);
      return SendResult::kSent;
    case ZmqSend::kFull:
      return SendResult::kNoCredit;
    case ZmqSend::kUnreachable:
      closed_.push_back(id);
      forget(peer);
  }
  return SendResult::kGone;
}

ZmqSend ChannelServer::send_frame(std::string_view routing_id, ChannelCredit* credit, uint16_t type,
                                  std::span<const std::string_view> parts) {
  ZmqMessage frame = make_frame(type, credit == nullptr ? 0 : credit->taken, parts);
  const ZmqSend routed = router_->send(routing_id, true);
  if (routed != ZmqSend::kSent) return routed;
  const ZmqSend sent = router_->send(frame, false);
  if (sent == ZmqSend::kSent && credit != nullptr) credit->told = credit->taken;
  return sent;
}

// produces: messages; consumes: frames, ends of connections; waits for: either, or credit that send() lacked; is
// unblocked by: the deadline, wake().
std::optional<ChannelMessage> ChannelServer::receive(Clock::time_point deadline) {
  while (true) {
    if (auto message = take()) return message;
    probe_disconnected();
    if (!closed_.empty()) {
      const PeerId id = closed_.back();
      closed_.pop_back();
      return ChannelMessage(id, kClosed);
    }
    if (wake_.take() || std::exchange(credit_came_, false) || Clock::now() >= deadline) return std::nullopt;
    wait_readable({router_.get()}, {wake_.file(), guard_->disconnected_file()}, deadline);
    wake_.look();
    guard_->look();
  }
}

std::optional<ChannelMessage> ChannelServer::take() {
  ZmqMessage routing_id, frame;
  while (router_->receive(routing_id)) {
    if (!routing_id.has_more() || !router_->receive(frame)) continue;
    if (frame.has_more()) {
      router_->skip_rest(frame);
      note_fault(FrameFault::kParts, routing_id.bytes(), "a message of several parts");
      continue;
    }
    if (auto message = accept(routing_id.bytes(), std::move(frame))) return message;
  }
  return std::nullopt;
}

std::optional<ChannelMessage> ChannelServer::accept(std::string_view routing_id, ZmqMessage message) {
  const DecodedFrame frame =
      decode_frame(message.bytes(), static_cast<uint64_t>(settings_.max_payload_bytes), settings_.last_type);
  if (frame.fault != FrameFault::kNone) {
    if (frame.fault == FrameFault::kVersion) send_frame(routing_id, nullptr, kRefused, {});
    note_fault(frame.fault, routing_id,
               frame.fault == FrameFault::kVersion
                   ? format("it speaks protocol version {}, this build {}", frame.header.version, kProtocolVersion)
                   : format("{} bytes of type {}", message.bytes().size(), frame.header.type));
    return std::nullopt;
  }
  if (frame.header.type == kOpened) return open(routing_id, frame, message);
  const auto known = by_routing_id_.find(std::string(routing_id));
  if (known == by_routing_id_.end()) {
    send_frame(routing_id, nullptr, kReset, {});
    note_fault(FrameFault::kNotOpened, routing_id, "the first message of a connection must open it");
    return std::nullopt;
  }
  Peer& peer = peers_.at(known->second);
  ChannelCredit& credit = peer.credit;
  const uint64_t told_us = credit.told_us;
  if (!credit.learn(frame.header.taken_bytes)) {
    note_fault(FrameFault::kCredit, routing_id,
               format("it says that it took {} of {} bytes sent", frame.header.taken_bytes, credit.sent));
    return std::nullopt;
  }
  if (peer.wants_credit && credit.told_us > told_us) {
    peer.wants_credit = false;
    credit_came_ = true;
  }
  if (frame.header.type == kCredit) return std::nullopt;
  if (frame.header.type < kFirstApplicationType) {
    note_fault(FrameFault::kType, routing_id, format("type {} is not for a server", frame.header.type));
    return std::nullopt;
  }
  credit.taken += message.bytes().size();
  if (credit.should_tell(settings_.window_bytes))
    send_frame(routing_id, &credit, kCredit, {});  // told again with the next frame where its queue is full
  ++counters_.frames_received;
  counters_.bytes_received += static_cast<int64_t>(frame.payload.size());
  return ChannelMessage(known->second, frame.header.type, std::move(message));
}

std::optional<ChannelMessage> ChannelServer::open(std::string_view routing_id, const DecodedFrame& frame,
                                                  const ZmqMessage& message) {
  const uint64_t window = opening_window(frame.payload);
  if (window == 0 || by_routing_id_.contains(std::string(routing_id))) {
    note_fault(FrameFault::kNotOpened, routing_id, "a connection opens once, with a window");
    return std::nullopt;
  }
  Peer peer{.routing_id = std::string(routing_id),
            .public_key = message.property("User-Id"),
            .file = file_of(message),
            .credit = {.window = window}};
  const std::string payload = opening_payload(settings_);
  const std::string_view part = payload;
  if (send_frame(routing_id, &peer.credit, kOpened, {&part, 1}) != ZmqSend::kSent) return std::nullopt;
  const PeerId id = ++last_peer_;
  by_routing_id_[peer.routing_id] = id;
  by_file_.emplace(peer.file, id);
  peers_.emplace(id, std::move(peer));
  return ChannelMessage(id, kOpened);
}

void ChannelServer::note_fault(FrameFault fault, std::string_view routing_id, const std::string& why) {
  if (++counters_.refused[static_cast<size_t>(fault)] > 1) return;
  const auto known = by_routing_id_.find(std::string(routing_id));
  log_warning("a message of {} was refused ({}): {}. Further ones are counted.",
              known == by_routing_id_.end() ? "an unopened connection" : format("peer {}", known->second),
              fault_name(fault), why);
}

void ChannelServer::refuse(PeerId id, const std::string& why) {
  const auto peer = peers_.find(id);
  if (peer == peers_.end()) return;
  note_fault(FrameFault::kPayload, peer->second.routing_id, why);
  close(id);
}

void ChannelServer::close(PeerId id) {
  const auto peer = peers_.find(id);
  if (peer == peers_.end()) return;
  send_frame(peer->second.routing_id, nullptr, kReset, {});
  forget(peer);
}

// An event names a file, which a new connection may have by now: a frame sent to each peer that had it tells. (The
// guard names it again a little later: the event comes shortly before the router knows.)
void ChannelServer::probe_disconnected() {
  for (const int file : guard_->take_disconnected()) {
    const auto [first, last] = by_file_.equal_range(file);
    std::vector<PeerId> suspects;
    for (auto at = first; at != last; ++at) suspects.push_back(at->second);
    for (const PeerId id : suspects) {
      const auto peer = peers_.find(id);
      if (send_frame(peer->second.routing_id, &peer->second.credit, kCredit, {}) != ZmqSend::kUnreachable) continue;
      closed_.push_back(id);
      forget(peer);
    }
  }
}

void ChannelServer::forget(Peers::iterator peer) {
  by_routing_id_.erase(peer->second.routing_id);
  const auto [first, last] = by_file_.equal_range(peer->second.file);
  for (auto at = first; at != last; ++at)
    if (at->second == peer->first) {
      by_file_.erase(at);
      break;
    }
  peers_.erase(peer);
}

void ChannelServer::allow(const std::string& public_key) { guard_->allow(public_key); }

std::string ChannelServer::public_key_of(PeerId id) const {
  const auto peer = peers_.find(id);
  return peer == peers_.end() ? "" : peer->second.public_key;
}

ChannelCounters ChannelServer::counters() const {
  ChannelCounters counters = counters_;
  counters.connections = guard_->connections();
  counters.handshakes_failed = guard_->handshakes_failed();
  counters.keys_refused = guard_->keys_refused();
  return counters;
}

}  // namespace temper
