#include "comm/weight_version.h"

#include <algorithm>
#include <cstring>
#include <span>

#include "comm/weight_delta.h"
#include "core/error.h"
#include "core/hash.h"

namespace temper {
namespace {

std::span<const std::byte> as_bytes(std::string_view text) {
  return std::as_bytes(std::span<const char>(text.data(), text.size()));
}

void check_part(const WeightPart& part) {
  TEMPER_CHECK(0 <= part.begin && part.begin <= part.end && part.end <= num_weight_elements(part.shape),
               "weights {}: elements {} to {} of shape [{}]", part.name, part.begin, part.end, join(part.shape));
  const int64_t bytes = (part.end - part.begin) * element_bytes(part.dtype);
  TEMPER_CHECK(static_cast<int64_t>(part.bytes.size()) == bytes, "weights {}: {} bytes for {} elements of {}",
               part.name, part.bytes.size(), part.end - part.begin, weight_dtype_name(part.dtype));
}

}  // namespace

WeightVersion::WeightVersion(int64_t epoch, PolicyVersion version, const std::vector<WeightPart>& parts,
                             int64_t chunk_bytes) {
  manifest_.epoch = epoch;
  manifest_.version = version;
  manifest_.chunk_bytes = chunk_bytes;
  for (const WeightPart& part : parts) {
    check_part(part);
    manifest_.parts.push_back(part);
    manifest_.parts.back().bytes = {};
    size_bytes_ += part.bytes.size();
  }
  bytes_ = std::make_unique_for_overwrite<std::byte[]>(size_bytes_);
  Xxh3Stream checksum;
  size_t at = 0;
  for (const WeightPart& part : parts) {
    if (!part.bytes.empty()) std::memcpy(bytes_.get() + at, part.bytes.data(), part.bytes.size());
    checksum.update(part.bytes.data(), part.bytes.size());
    at += part.bytes.size();
  }
  manifest_.checksum = checksum.digest_hex();
  const int64_t num_chunks = manifest_.num_chunks();
  for (int64_t index = 0; index < num_chunks; ++index) chunk_checksums_.push_back(xxh3_64(chunk(index)));
}

std::string_view WeightVersion::chunk(int64_t index) const {
  const auto chunk_bytes = static_cast<size_t>(manifest_.chunk_bytes);
  const size_t begin = static_cast<size_t>(index) * chunk_bytes;
  return {reinterpret_cast<const char*>(bytes_.get()) + begin, std::min(chunk_bytes, size_bytes_ - begin)};
}

std::string_view WeightVersion::delta(const WeightVersion& base, int64_t index) {
  std::vector<std::optional<std::string>>& deltas = deltas_[base.manifest().version];
  deltas.resize(chunk_checksums_.size());
  std::optional<std::string>& delta = deltas[static_cast<size_t>(index)];
  if (!delta) {
    delta = encode_delta(as_bytes(base.chunk(index)), as_bytes(chunk(index)));
    if (delta->size() >= chunk(index).size()) delta->clear();
    delta->shrink_to_fit();  // the buffer was for the worst case
  }
  return *delta;
}

}  // namespace temper
