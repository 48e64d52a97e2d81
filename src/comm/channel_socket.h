// What both ends of a channel share: which addresses they may use, the options of their sockets, how a frame is put
// together. For channel_server.cpp and channel_client.cpp.
#pragma once
#include <span>
#include <string>
#include <string_view>

#include "comm/channel.h"

namespace temper {

// ConfigError unless the address is tcp://HOST:PORT and the settings allow HOST: plain text stays on loopback, and a
// server listens on one interface.
void check_server_address(const std::string& address, bool plain_text, const ChannelSettings& settings);
void check_client_address(const std::string& address, bool plain_text, const ChannelSettings& settings);
void check_settings(const ChannelSettings& settings);

void set_common_options(ZmqSocket& socket, const ChannelSettings& settings);

ZmqMessage make_frame(uint16_t type, uint64_t taken_bytes, std::span<const std::string_view> parts);
uint64_t frame_bytes(std::span<const std::string_view> parts);  // with the header

// The payload of kOpened: the bytes that the sender of it lets the other end have under way.
std::string opening_payload(const ChannelSettings& settings);
uint64_t opening_window(std::string_view payload);  // 0 where it is malformed

}  // namespace temper
