#include "comm/frame.h"

#include <gtest/gtest.h>

#include <string>

namespace temper {
namespace {

constexpr uint16_t kType = 20, kLastType = 31;
constexpr uint64_t kMaxPayload = 1000;

std::string frame_of(FrameHeader header, std::string_view payload) {
  std::string bytes(kFrameHeaderBytes, '\0');
  encode_header(header, bytes.data());
  return bytes + std::string(payload);
}

FrameHeader header_of(uint16_t type, std::string_view payload) {
  return {.type = type, .payload_bytes = payload.size(), .taken_bytes = 77, .checksum = frame_checksum(type, payload)};
}

FrameFault fault_of(const std::string& bytes) { return decode_frame(bytes, kMaxPayload, kLastType).fault; }

TEST(Frame, ComesBackAsItWas) {
  const std::string payload("a\0b", 3);
  const std::string bytes = frame_of(header_of(kType, payload), payload);
  const DecodedFrame frame = decode_frame(bytes, kMaxPayload, kLastType);
  EXPECT_EQ(frame.fault, FrameFault::kNone);
  EXPECT_EQ(frame.header.type, kType);
  EXPECT_EQ(frame.header.taken_bytes, 77U);
  EXPECT_EQ(frame.payload, payload);
}

TEST(Frame, LayoutIsTheOneOfTheHeaderComment) {
  const std::string bytes =
      frame_of({.version = 0x0201, .type = 0x0403, .payload_bytes = 5, .taken_bytes = 6, .checksum = 7}, "");
  EXPECT_EQ(bytes, std::string("TMPR\x01\x02\x03\x04"
                               "\x05\0\0\0\0\0\0\0\x06\0\0\0\0\0\0\0\x07\0\0\0\0\0\0\0",
                               32));
}

TEST(Frame, LiesAreNamed) {
  const std::string payload = "payload";
  const FrameHeader good = header_of(kType, payload);
  EXPECT_EQ(fault_of(""), FrameFault::kShort);
  EXPECT_EQ(fault_of("TMPR\x01"), FrameFault::kShort);
  EXPECT_EQ(fault_of(frame_of(good, payload).substr(0, kFrameHeaderBytes - 1)), FrameFault::kShort);
  EXPECT_EQ(fault_of("GET / HTTP/1.1\r\n\r\n"), FrameFault::kMagic);
  FrameHeader bad = good;
  bad.version = kProtocolVersion + 1;
  EXPECT_EQ(fault_of(frame_of(bad, payload)), FrameFault::kVersion);
  EXPECT_EQ(fault_of(frame_of(header_of(kLastType + 1, payload), payload)), FrameFault::kType);
  EXPECT_EQ(fault_of(frame_of(header_of(0, payload), payload)), FrameFault::kType);
  for (const uint64_t size : {uint64_t{0}, uint64_t{6}, uint64_t{8}, UINT64_MAX}) {
    bad = good;
    bad.payload_bytes = size;
    EXPECT_EQ(fault_of(frame_of(bad, payload)), FrameFault::kSize) << size;
  }
  const std::string large(kMaxPayload + 1, 'x');
  EXPECT_EQ(fault_of(frame_of(header_of(kType, large), large)), FrameFault::kSize);
  EXPECT_EQ(fault_of(frame_of(good, "paylOad")), FrameFault::kChecksum);
  bad = good;
  bad.type = kType + 1;  // the checksum covers the type
  EXPECT_EQ(fault_of(frame_of(bad, payload)), FrameFault::kChecksum);
}

TEST(Frame, AnyBitThatFlipsBehindTheCreditIsNoticed) {
  const std::string payload = "some payload";
  const std::string bytes = frame_of(header_of(kType, payload), payload);
  for (size_t bit = 0; bit < 8 * bytes.size(); ++bit) {
    if (bit / 8 >= 16 && bit / 8 < 24) continue;  // credit: checked against what was sent
    std::string flipped = bytes;
    flipped[bit / 8] = static_cast<char>(flipped[bit / 8] ^ (1 << bit % 8));
    EXPECT_NE(fault_of(flipped), FrameFault::kNone) << "bit " << bit;
  }
}

}  // namespace
}  // namespace temper
