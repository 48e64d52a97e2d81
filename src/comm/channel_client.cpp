#include <zmq.h>

#include <algorithm>
#include <random>
#include <utility>

#include "comm/channel.h"
#include "comm/channel_socket.h"
#include "core/error.h"

namespace temper {

using Clock = std::chrono::steady_clock;

ChannelClient::ChannelClient(const std::string& address, const std::optional<ClientKeys>& keys,
                             const ChannelSettings& settings, const ZmqContext* context)
    : settings_(settings),
      address_(address),
      keys_(keys),
      context_(context != nullptr ? *context : own_context_.emplace(settings.io_threads)),
      jitter_(std::random_device()()) {
  check_settings(settings);
  check_client_address(address, !keys, settings);
  connect();
}

ChannelClient::~ChannelClient() = default;

// A socket a connection: ZeroMQ would carry what was queued for a lost connection over to the next, where nobody waits
// for it any more.
void ChannelClient::connect() {
  dealer_ = std::make_unique<ZmqSocket>(context_, ZmqKind::kDealer);
  set_common_options(*dealer_, settings_);
  dealer_->set(ZMQ_RECONNECT_IVL, static_cast<int>(settings_.min_reconnect.count()));
  dealer_->set(ZMQ_RECONNECT_IVL_MAX, static_cast<int>(settings_.max_reconnect.count()));
  if (keys_) {
    dealer_->set(ZMQ_CURVE_SERVERKEY, keys_->server_public_key);
    dealer_->set(ZMQ_CURVE_PUBLICKEY, keys_->own.public_key);
    dealer_->set(ZMQ_CURVE_SECRETKEY, keys_->own.secret_key);
  }
  const std::string events = format("inproc://temper.events.{}.{}", reinterpret_cast<uintptr_t>(this), ++attempt_);
  dealer_->monitor(events);
  monitor_ = std::make_unique<ZmqSocket>(context_, ZmqKind::kPair);
  monitor_->set(ZMQ_RCVHWM, 0);  // ZeroMQ's I/O thread waits where this queue is full
  monitor_->set(ZMQ_LINGER, 0);
  monitor_->connect(events);
  dealer_->connect(address_);
  credit_ = {};
}

void ChannelClient::disconnect() {
  closed_ = open_;
  dealer_->set(ZMQ_LINGER, 0);  // what is still queued was for the connection that is gone
  dealer_->monitor("");
  dealer_.reset();
  monitor_.reset();
  open_ = lost_ = false;
  const auto delay =
      std::min(settings_.max_reconnect, settings_.min_reconnect * (int64_t{1} << std::min(failures_, 20)));
  retry_at_ = Clock::now() + delay / 2 + std::chrono::milliseconds(jitter_.in_range(0, delay.count()));
  ++failures_;
}

SendResult ChannelClient::send(uint16_t type, std::span<const std::string_view> parts) {
  TEMPER_CHECK(type >= kFirstApplicationType, "type {} is the channel's own", type);
  if (!open_ || lost_) return SendResult::kGone;
  const uint64_t bytes = frame_bytes(parts);
  if (bytes > credit_.window / 2)
    throw CommError("{}: takes messages of {} bytes at most, this one of type {} has {}.", address_, credit_.window / 2,
                    type, bytes);
  if (!credit_.may_send(bytes) || send_frame(type, parts) != ZmqSend::kSent) return SendResult::kNoCredit;
  credit_.sent += bytes;
  ++counters_.frames_sent;
  counters_.bytes_sent += static_cast<int64_t>(bytes - kFrameHeaderBytes);
  return SendResult::kSent;
}

ZmqSend ChannelClient::send_frame(uint16_t type, std::span<const std::string_view> parts) {
  ZmqMessage frame = make_frame(type, credit_.taken, parts);
  const ZmqSend sent = dealer_->send(frame, false);
  if (sent == ZmqSend::kSent) credit_.told = credit_.taken;
  return sent;
}

// produces: messages; consumes: frames, events of the connection; waits for: either; is unblocked by: the deadline,
// wake().
std::optional<ChannelMessage> ChannelClient::receive(Clock::time_point deadline) {
  while (true) {
    if (std::exchange(closed_, false)) return ChannelMessage(0, kClosed);
    if (auto message = take()) return message;
    if (lost_) {
      disconnect();
      continue;
    }
    if (!dealer_ && Clock::now() >= retry_at_) connect();
    if (dealer_) see_events();
    if (lost_) continue;
    if (wake_.take() || Clock::now() >= deadline) return std::nullopt;
    if (dealer_)
      wait_readable({dealer_.get(), monitor_.get()}, {wake_.file()}, deadline);
    else
      wait_readable({}, {wake_.file()}, std::min(deadline, retry_at_));
    wake_.look();
  }
}

std::optional<ChannelMessage> ChannelClient::next() { return closed_ || lost_ ? std::nullopt : take(); }

void ChannelClient::see_events() {
  ZmqEvent event;
  while (receive_event(*monitor_, event)) switch (event.event) {
      case ZMQ_EVENT_HANDSHAKE_SUCCEEDED: {
        const std::string payload = opening_payload(settings_);
        const std::string_view part = payload;
        send_frame(kOpened, {&part, 1});
        break;
      }
      case ZMQ_EVENT_DISCONNECTED:
        lost_ = true;
        return;
      case ZMQ_EVENT_HANDSHAKE_FAILED_AUTH:
        refusal_ = format(
            "{}: the key of this worker is not on the hub's list. Add it to allowed_workers in the hub's "
            "key folder, or use the key folder of the job.",
            address_);
        lost_ = true;
        return;
      case ZMQ_EVENT_HANDSHAKE_FAILED_NO_DETAIL:
      case ZMQ_EVENT_HANDSHAKE_FAILED_PROTOCOL:
        refusal_ = format(
            "{}: the handshake failed: another hub's key, no key, or no hub at all. Use the hub.json and the "
            "key folder of the run.",
            address_);
        lost_ = true;  // ZeroMQ itself gives up here
        return;
      case ZMQ_EVENT_CONNECT_RETRIED:
        if (refusal_.empty()) refusal_ = format("{}: nobody answers.", address_);
        break;
      default:
        break;
    }
}

std::optional<ChannelMessage> ChannelClient::take() {
  ZmqMessage frame;
  while (dealer_ && dealer_->receive(frame)) {
    if (frame.has_more()) {
      dealer_->skip_rest(frame);
      ++counters_.refused[static_cast<size_t>(FrameFault::kParts)];
      continue;
    }
    if (auto message = accept(std::move(frame))) return message;
  }
  return std::nullopt;
}

std::optional<ChannelMessage> ChannelClient::accept(ZmqMessage message) {
  const DecodedFrame frame =
      decode_frame(message.bytes(), static_cast<uint64_t>(settings_.max_payload_bytes), settings_.last_type);
  const auto refused = [&](FrameFault fault) {
    ++counters_.refused[static_cast<size_t>(fault)];
    return std::nullopt;
  };
  if (frame.fault == FrameFault::kVersion)
    refusal_ = format("{}: speaks protocol version {}, this build {}. Run trainer and workers from one build.",
                      address_, frame.header.version, kProtocolVersion);
  if (frame.fault != FrameFault::kNone) return refused(frame.fault);
  if (frame.header.type == kReset) {
    lost_ = true;
    return std::nullopt;
  }
  if (frame.header.type == kOpened) {
    credit_.window = opening_window(frame.payload);
    if (open_ || credit_.window == 0) return refused(FrameFault::kNotOpened);
    open_ = true;
    failures_ = 0;
    refusal_.clear();
    return ChannelMessage(0, kOpened);
  }
  if (!open_) return refused(FrameFault::kNotOpened);
  if (!credit_.learn(frame.header.taken_bytes)) return refused(FrameFault::kCredit);
  if (frame.header.type == kCredit) return std::nullopt;
  if (frame.header.type < kFirstApplicationType) return refused(FrameFault::kType);
  credit_.taken += message.bytes().size();
  if (credit_.should_tell(settings_.window_bytes)) send_frame(kCredit, {});
  ++counters_.frames_received;
  counters_.bytes_received += static_cast<int64_t>(frame.payload.size());
  return ChannelMessage(0, frame.header.type, std::move(message));
}

std::string ChannelClient::refusal() const {
  if (open_) return "";
  return refusal_.empty() ? format("{}: no answer yet.", address_) : refusal_;
}

}  // namespace temper
