#include "comm/frame.h"

#include <xxhash.h>

#include <bit>
#include <cstring>

namespace temper {
namespace {

static_assert(std::endian::native == std::endian::little,
              "frames are little-endian, as every machine that runs Temper");

constexpr uint32_t kFrameMagic = 0x52504D54;  // "TMPR"

template <class T>
void put(char* to, T value) {
  std::memcpy(to, &value, sizeof value);
}

template <class T>
T take(const char* from) {
  T value;
  std::memcpy(&value, from, sizeof value);
  return value;
}

}  // namespace

const char* fault_name(FrameFault fault) {
  constexpr std::array<const char*, kNumFrameFaults> kNames = {
      "none", "parts", "short", "magic", "version", "type", "size", "checksum", "credit", "not_opened", "payload"};
  return kNames[static_cast<size_t>(fault)];
}

uint64_t frame_checksum(uint16_t type, std::string_view payload) {
  return XXH3_64bits_withSeed(payload.data(), payload.size(), uint64_t{type} << 48 ^ payload.size());
}

void encode_header(const FrameHeader& header, char* to) {
  put(to, kFrameMagic);
  put(to + 4, header.version);
  put(to + 6, header.type);
  put(to + 8, header.payload_bytes);
  put(to + 16, header.taken_bytes);
  put(to + 24, header.checksum);
}

DecodedFrame decode_frame(std::string_view bytes, uint64_t max_payload_bytes, uint16_t last_type) {
  DecodedFrame frame;
  const auto with = [&](FrameFault fault) {
    frame.fault = fault;
    return frame;
  };
  if (bytes.size() < 6) return with(FrameFault::kShort);
  if (take<uint32_t>(bytes.data()) != kFrameMagic) return with(FrameFault::kMagic);
  frame.header.version = take<uint16_t>(bytes.data() + 4);
  if (frame.header.version != kProtocolVersion) return with(FrameFault::kVersion);
  if (bytes.size() < kFrameHeaderBytes) return with(FrameFault::kShort);
  frame.header.type = take<uint16_t>(bytes.data() + 6);
  frame.header.payload_bytes = take<uint64_t>(bytes.data() + 8);
  frame.header.taken_bytes = take<uint64_t>(bytes.data() + 16);
  frame.header.checksum = take<uint64_t>(bytes.data() + 24);
  if (frame.header.type == 0 || frame.header.type > last_type) return with(FrameFault::kType);
  const std::string_view payload = bytes.substr(kFrameHeaderBytes);
  if (frame.header.payload_bytes != payload.size() || payload.size() > max_payload_bytes)
    return with(FrameFault::kSize);
  if (frame_checksum(frame.header.type, payload) != frame.header.checksum) return with(FrameFault::kChecksum);
  frame.payload = payload;
  return frame;
}

}  // namespace temper
