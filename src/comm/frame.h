// The frame: what one message between a hub and a worker, or a weight publisher and its readers, looks like on the
// wire. One ZeroMQ message of one part: a header of 32 bytes, little-endian, then the payload.
//
//   offset  bytes  field
//   0       4      magic, "TMPR"
//   4       2      protocol version; magic and version keep their place in every version
//   6       2      type: below kFirstApplicationType the channel's own (comm/channel.h)
//   8       8      size of the payload in bytes
//   16      8      payload bytes of the other end's frames that the sender has taken since the connection opened
//   (credit) 24      8      XXH3-64 of the payload, seeded with the type and the size
//
// decode_frame() looks at the bytes that came and nothing else: it allocates nothing and believes no number in them.
#pragma once
#include <array>
#include <cstddef>
#include <cstdint>
#include <string_view>

namespace temper {

constexpr uint16_t kProtocolVersion = 1;
constexpr size_t kFrameHeaderBytes = 32;
constexpr uint16_t kFirstApplicationType = 16;

// Why a frame is refused. Each is counted apart.
enum class FrameFault : uint8_t {
  kNone,
  kParts,      // more than one part
  kShort,      // shorter than a header
  kMagic,      // not a frame of Temper
  kVersion,    // of another protocol version
  kType,       // a type that the receiver does not know
  kSize,       // says another size than came, or more than the receiver takes
  kChecksum,   // the payload is not what was sent
  kCredit,     // says to have taken more than was sent to it, or less than before
  kNotOpened,  // of a connection that has not been opened
  kPayload,    // the payload is not what its type says (found by whoever decodes it)
};
constexpr size_t kNumFrameFaults = static_cast<size_t>(FrameFault::kPayload) + 1;
const char* fault_name(FrameFault fault);

struct FrameHeader {
  uint16_t version = kProtocolVersion;
  uint16_t type = 0;
  uint64_t payload_bytes = 0;
  uint64_t taken_bytes = 0;
  uint64_t checksum = 0;
};

uint64_t frame_checksum(uint16_t type, std::string_view payload);
void encode_header(const FrameHeader& header, char* to);  // writes kFrameHeaderBytes

struct DecodedFrame {
  FrameFault fault = FrameFault::kNone;
  FrameHeader header;        // as far as it could be read
  std::string_view payload;  // of the bytes given; empty where there is a fault
};

// last_type: the greatest application type that the receiver knows; the channel's own types are always known.
DecodedFrame decode_frame(std::string_view bytes, uint64_t max_payload_bytes, uint16_t last_type);

}  // namespace temper
