// Whatever bytes come, the decoders of weight messages throw FormatError or give what encodes to the same bytes. The
// first byte of the input chooses the decoder.
#include <cstdlib>

#include "comm/weight_messages.h"
#include "core/error.h"

using namespace temper;

namespace {

std::string again(uint8_t which, std::string_view bytes) {
  switch (which % 5) {
    case 0:
      return encode(decode_weight_offer(bytes));
    case 1:
      return encode(decode_weight_request(bytes));
    case 2: {
      const WeightManifest manifest = decode_weight_manifest(bytes);
      if (manifest.stream_bytes() < 0 || manifest.num_chunks() < 0) std::abort();
      return encode(manifest);
    }
    case 3: {
      const WeightChunk chunk = decode_weight_chunk(bytes);
      return encode_chunk_header(chunk) + std::string(chunk.bytes);
    }
    default:
      return encode_request_number(decode_request_number(bytes));
  }
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  if (size == 0) return 0;
  const std::string_view bytes(reinterpret_cast<const char*>(data) + 1, size - 1);
  try {
    if (again(data[0], bytes) != bytes) std::abort();
  } catch (const FormatError&) {
  }
  return 0;
}
