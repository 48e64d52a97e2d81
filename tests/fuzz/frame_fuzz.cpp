// Whatever bytes come, decode_frame() names a fault, or its payload lies within them and encodes to the same bytes.
#include <cstdlib>
#include <string>

#include "comm/frame.h"

using namespace temper;

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  constexpr uint64_t kMaxPayload = 4096;
  constexpr uint16_t kLastType = 40;
  const std::string_view bytes(reinterpret_cast<const char*>(data), size);
  const DecodedFrame frame = decode_frame(bytes, kMaxPayload, kLastType);
  if (frame.fault == FrameFault::kNone) {
    std::string again(kFrameHeaderBytes, '\0');
    encode_header(frame.header, again.data());
    again += frame.payload;
    if (again != bytes || frame.payload.size() > kMaxPayload || frame.header.type > kLastType) std::abort();
  }
  // Past the checksum too: the same bytes with the right one.
  if (size < kFrameHeaderBytes) return 0;
  std::string right(bytes);
  FrameHeader header = frame.header;
  header.version = kProtocolVersion;
  header.checksum = frame_checksum(header.type, bytes.substr(kFrameHeaderBytes));
  encode_header(header, right.data());
  if (decode_frame(right, kMaxPayload, kLastType).fault == FrameFault::kChecksum) std::abort();
  return 0;
}
