#include "comm/weight_delta.h"

#include <zstd.h>

#include <cstring>
#include <vector>

#include "core/error.h"

namespace temper {
namespace {

// The fastest of the levels that find runs of zeros well; a higher one costs more time than it saves on the wire.
constexpr int kLevel = 1;

void xor_into(std::span<std::byte> target, std::span<const std::byte> other) {
  size_t at = 0;
  for (; at + sizeof(uint64_t) <= target.size(); at += sizeof(uint64_t)) {
    uint64_t a = 0, b = 0;
    std::memcpy(&a, target.data() + at, sizeof a);
    std::memcpy(&b, other.data() + at, sizeof b);
    a ^= b;
    std::memcpy(target.data() + at, &a, sizeof a);
  }
  for (; at < target.size(); ++at) target[at] ^= other[at];
}

}  // namespace

std::string encode_delta(std::span<const std::byte> base, std::span<const std::byte> next) {
  TEMPER_CHECK(base.size() == next.size(), "a delta from {} bytes to {}", base.size(), next.size());
  std::vector<std::byte> changed(next.begin(), next.end());
  xor_into(changed, base);
  std::string delta(ZSTD_compressBound(changed.size()), '\0');
  const size_t size = ZSTD_compress(delta.data(), delta.size(), changed.data(), changed.size(), kLevel);
  TEMPER_CHECK(ZSTD_isError(size) == 0, "zstd: {}", ZSTD_getErrorName(size));
  delta.resize(size);
  return delta;
}

void apply_delta(std::string_view delta, std::span<std::byte> weights) {
  // Into a buffer of the size that is wanted, whatever the delta says of itself.
  std::vector<std::byte> changed(weights.size());
  const size_t size = ZSTD_decompress(changed.data(), changed.size(), delta.data(), delta.size());
  if (ZSTD_isError(size) != 0)
    throw FormatError("a delta of weights, {} bytes for {}, cannot be unpacked ({}). The whole version is needed.",
                      delta.size(), weights.size(), ZSTD_getErrorName(size));
  if (size != weights.size())
    throw FormatError("a delta of weights is for {} bytes, here are {}. The whole version is needed.", size,
                      weights.size());
  xor_into(weights, changed);
}

}  // namespace temper
