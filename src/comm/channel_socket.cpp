#include "comm/channel_socket.h"

#include <arpa/inet.h>
#include <zmq.h>

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace temper {
namespace {

constexpr int64_t kCipherBytes = 64;  // what CURVE adds to a frame, at most

std::string host_of(const std::string& address) {
  constexpr std::string_view kScheme = "tcp://";
  const size_t colon = address.rfind(':');
  if (!address.starts_with(kScheme) || colon == std::string::npos || colon <= kScheme.size() ||
      colon + 1 == address.size())
    throw ConfigError("{}: is no address of a wire. Write it as tcp://HOST:PORT.", address);
  return address.substr(kScheme.size(), colon - kScheme.size());
}

bool is_loopback_host(const std::string& host) {
  in_addr numeric{};
  if (inet_pton(AF_INET, host.c_str(), &numeric) == 1) return (ntohl(numeric.s_addr) >> 24) == 127;
  return host == "[::1]" || host == "lo";
}

bool is_every_interface(const std::string& host) {
  in_addr numeric{};
  if (inet_aton(host.c_str(), &numeric) == 1) return numeric.s_addr == 0;  // 0.0.0.0, 0, 0x0
  return host == "*" || host == "[::]" || host == "::" || host == "[::0]";
}

void check_plain_text(const std::string& address, const ChannelSettings& settings) {
  if (!settings.allow_plain_text)
    throw ConfigError(
        "{}: no keys were given, and a wire without keys must be asked for. Give the key folder of the job.", address);
  if (!is_loopback(address))
    throw ConfigError(
        "{}: a wire in plain text may not leave this machine. Use tcp://127.0.0.1:PORT, or give the key folder of the "
        "job.",
        address);
}

}  // namespace

bool is_loopback(const std::string& address) { return is_loopback_host(host_of(address)); }

void check_server_address(const std::string& address, bool plain_text, const ChannelSettings& settings) {
  if (is_every_interface(host_of(address)) && !settings.allow_all_interfaces)
    throw ConfigError(
        "{}: would listen on every network that this machine is in. Give the address or name of the interface that the "
        "workers reach, as tcp://10.0.0.1:* or tcp://eth0:*.",
        address);
  if (plain_text) check_plain_text(address, settings);
}

void check_client_address(const std::string& address, bool plain_text, const ChannelSettings& settings) {
  host_of(address);
  if (plain_text) check_plain_text(address, settings);
}

void check_settings(const ChannelSettings& settings) {
  const auto frame = static_cast<int64_t>(kFrameHeaderBytes) + settings.max_payload_bytes;
  TEMPER_CHECK(settings.max_payload_bytes > 0 && settings.window_bytes >= 2 * frame,
               "a window of {} bytes is less than two frames of {}", settings.window_bytes, frame);
}

void set_common_options(ZmqSocket& socket, const ChannelSettings& settings) {
  const auto ms = [](std::chrono::milliseconds time) { return static_cast<int>(time.count()); };
  socket.set(ZMQ_MAXMSGSIZE, static_cast<int64_t>(kFrameHeaderBytes) + settings.max_payload_bytes + kCipherBytes);
  socket.set(ZMQ_SNDHWM, settings.queue_frames);
  socket.set(ZMQ_RCVHWM, settings.queue_frames);
  socket.set(ZMQ_LINGER, ms(settings.linger));
  socket.set(ZMQ_HANDSHAKE_IVL, ms(settings.handshake_timeout));
  socket.set(ZMQ_HEARTBEAT_IVL, ms(settings.heartbeat));
  socket.set(ZMQ_HEARTBEAT_TIMEOUT, 3 * ms(settings.heartbeat));
}

uint64_t frame_bytes(std::span<const std::string_view> parts) {
  uint64_t bytes = kFrameHeaderBytes;
  for (const std::string_view part : parts) bytes += part.size();
  return bytes;
}

ZmqMessage make_frame(uint16_t type, uint64_t taken_bytes, std::span<const std::string_view> parts) {
  const uint64_t bytes = frame_bytes(parts);
  ZmqMessage frame(bytes);
  char* to = frame.data() + kFrameHeaderBytes;
  for (const std::string_view part : parts) to = std::copy(part.begin(), part.end(), to);
  const std::string_view payload = frame.bytes().substr(kFrameHeaderBytes);
  encode_header({.type = type,
                 .payload_bytes = payload.size(),
                 .taken_bytes = taken_bytes,
                 .checksum = frame_checksum(type, payload)},
                frame.data());
  return frame;
}

std::string opening_payload(const ChannelSettings& settings) {
  const auto window = static_cast<uint64_t>(settings.window_bytes);
  return {reinterpret_cast<const char*>(&window), sizeof window};
}

uint64_t opening_window(std::string_view payload) {
  uint64_t window = 0;
  if (payload.size() == sizeof window) std::memcpy(&window, payload.data(), sizeof window);
  return window;
}

}  // namespace temper
