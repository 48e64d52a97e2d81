// A version put together from a manifest and chunks that a rank sends: whatever they are, FormatError or bytes that lie
// within the tensors. The input is the size of the manifest (u16), the manifest, then chunks: size (u16), encoding, and
// bytes; a raw chunk's checksum is made to fit, or none would be placed.
#include <algorithm>
#include <cstring>

#include "comm/weight_set.h"
#include "core/error.h"
#include "core/hash.h"

using namespace temper;

namespace {

constexpr int64_t kMaxBytes = 1 << 20;

std::string_view take(std::string_view& input, size_t size) {
  const std::string_view taken = input.substr(0, std::min(size, input.size()));
  input.remove_prefix(taken.size());
  return taken;
}

size_t take_size(std::string_view& input) {
  uint16_t size = 0;
  const std::string_view bytes = take(input, sizeof size);
  std::memcpy(&size, bytes.data(), bytes.size());
  return size;
}

WeightSet make_set(const WeightManifest& manifest) {
  WeightLayout layout({manifest}, kMaxBytes);
  auto memory = allocate_weights(layout.size_bytes());
  std::fill_n(memory->data(), layout.size_bytes(), std::byte{1});
  return {{manifest}, std::move(layout), std::move(memory)};
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  std::string_view input(reinterpret_cast<const char*>(data), size);
  try {
    const size_t manifest_bytes = take_size(input);
    const WeightManifest manifest = decode_weight_manifest(take(input, manifest_bytes));
    WeightSet base = make_set(manifest), next = make_set(manifest);
    for (int64_t index = 0; !input.empty(); ++index) {
      const size_t chunk_bytes = take_size(input);
      const std::string_view encoding = take(input, 1);
      const bool delta = !encoding.empty() && (encoding[0] & 1) != 0;
      WeightChunk chunk{.request = 1, .index = index, .bytes = take(input, chunk_bytes)};
      chunk.encoding = delta ? ChunkEncoding::kDelta : ChunkEncoding::kRaw;
      chunk.checksum = delta ? 0 : xxh3_64(chunk.bytes);
      next.place(0, chunk, &base);
    }
    next.check(0);
    next.view();
  } catch (const FormatError&) {
  }
  return 0;
}
