#include "comm/weight_messages.h"

#include <algorithm>
#include <functional>

#include "comm/wire_format.h"
#include "core/error.h"

namespace temper {
namespace {

constexpr size_t kMaxTensorNameBytes = 1024;
constexpr size_t kMaxDimensions = 16;
constexpr size_t kChecksumDigits = 32;
constexpr size_t kMaxLinkIdBytes = 256;             // NCCL's have 128
constexpr size_t kPartBytes = 8 + 1 + 8 + 8 + 8;    // of a part without name and dimensions
constexpr int64_t kMaxElements = int64_t{1} << 48;  // of a tensor, and of all parts of a rank

int64_t read_field(WireReader& reader, int64_t lowest, const char* what) {
  const auto value = reader.number<int64_t>();
  if (value < lowest) throw FormatError("a message about weights has {} for {}.", value, what);
  return value;
}

int64_t read_request(WireReader& reader) { return read_field(reader, 1, "the number of a request"); }

void read_checksum(WireReader& reader, std::string& checksum) {
  checksum = reader.text();
  if (checksum.size() != kChecksumDigits)
    throw FormatError("a message about weights has a checksum of {} digits.", checksum.size());
}

void check_end(const WireReader& reader, const char* what) {
  if (!reader.at_end()) throw FormatError("{} has more bytes than members.", what);
}

void write_part(const WeightPart& part, WireWriter& writer) {
  writer.text(part.name);
  writer.number(static_cast<uint8_t>(part.dtype));
  writer.array(part.shape);
  writer.number(part.begin);
  writer.number(part.end);
}

WeightPart read_part(WireReader& reader) {
  WeightPart part;
  part.name = reader.text();
  if (part.name.empty() || part.name.size() > kMaxTensorNameBytes)
    throw FormatError("a tensor of weights has a name of {} bytes.", part.name.size());
  part.dtype = reader.choice(kLastWeightDtype);
  part.shape = reader.array<int64_t>();
  if (part.shape.size() > kMaxDimensions)
    throw FormatError("weights {}: a shape of {} dimensions.", part.name, part.shape.size());
  const int64_t elements = num_weight_elements(part.shape);
  part.begin = reader.number<int64_t>();
  part.end = reader.number<int64_t>();
  if (part.begin < 0 || part.begin > part.end || part.end > elements)
    throw FormatError("weights {}: elements {} to {} of {}.", part.name, part.begin, part.end, elements);
  return part;
}

}  // namespace

int64_t num_weight_elements(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) {
    if (size < 0 || (size > 0 && elements > kMaxElements / size))
      throw FormatError("a tensor of weights of shape [{}].", join(shape));
    elements *= size;
  }
  return elements;
}

bool same_parts(const std::vector<WeightPart>& a, const std::vector<WeightPart>& b) {
  return std::equal(a.begin(), a.end(), b.begin(), b.end(), [](const WeightPart& left, const WeightPart& right) {
    return left.name == right.name && left.dtype == right.dtype && left.shape == right.shape &&
           left.begin == right.begin && left.end == right.end;
  });
}

int64_t WeightManifest::stream_bytes() const {
  int64_t bytes = 0;
  for (const WeightPart& part : parts) bytes += (part.end - part.begin) * element_bytes(part.dtype);
  return bytes;
}

int64_t WeightManifest::num_chunks() const {
  const int64_t bytes = stream_bytes();
  return bytes / chunk_bytes + (bytes % chunk_bytes == 0 ? 0 : 1);
}

int64_t WeightManifest::link_piece_bytes() const {
  constexpr int64_t kAbout = int64_t{64} << 20;
  return chunk_bytes * std::max<int64_t>(1, kAbout / chunk_bytes);
}

std::string encode(const WeightOffer& offer) {
  WireWriter writer;
  writer.number(offer.epoch);
  writer.array(offer.versions);
  return writer.take();
}

WeightOffer decode_weight_offer(std::string_view bytes) {
  WireReader reader(bytes);
  WeightOffer offer;
  offer.epoch = read_field(reader, 0, "an epoch");
  offer.versions = reader.array<PolicyVersion>();
  check_end(reader, "an offer of weights");
  const auto out_of_order =
      std::adjacent_find(offer.versions.begin(), offer.versions.end(), std::greater_equal<PolicyVersion>());
  if (out_of_order != offer.versions.end() || (!offer.versions.empty() && offer.versions.front() < 0))
    throw FormatError("an offer of weights has versions out of order: {}.", join(offer.versions));
  return offer;
}

std::string encode(const WeightRequest& request) {
  WireWriter writer;
  writer.number(request.request);
  writer.number(request.epoch);
  writer.number(request.version);
  writer.number(request.base);
  writer.text(request.base_checksum);
  writer.text(request.link);
  return writer.take();
}

WeightRequest decode_weight_request(std::string_view bytes) {
  WireReader reader(bytes);
  WeightRequest request;
  request.request = read_request(reader);
  request.epoch = read_field(reader, 0, "an epoch");
  request.version = read_field(reader, 0, "a version");
  request.base = read_field(reader, -1, "a base version");
  request.base_checksum = reader.text();
  request.link = reader.text();
  check_end(reader, "a request for weights");
  if (request.link.size() > kMaxLinkIdBytes)
    throw FormatError("a request for weights has an id of {} bytes for its link.", request.link.size());
  if (request.base_checksum.size() != (request.base < 0 ? 0 : kChecksumDigits))
    throw FormatError("a request for weights has a checksum of {} digits for base {}.", request.base_checksum.size(),
                      request.base);
  return request;
}

std::string encode(const WeightManifest& manifest) {
  WireWriter writer;
  writer.number(manifest.request);
  writer.number(manifest.epoch);
  writer.number(manifest.version);
  writer.number(manifest.base);
  writer.number(static_cast<uint8_t>(manifest.route));
  writer.number(manifest.chunk_bytes);
  writer.text(manifest.checksum);
  writer.number(static_cast<int64_t>(manifest.parts.size()));
  for (const WeightPart& part : manifest.parts) write_part(part, writer);
  return writer.take();
}

WeightManifest decode_weight_manifest(std::string_view bytes) {
  WireReader reader(bytes);
  WeightManifest manifest;
  manifest.request = read_request(reader);
  manifest.epoch = read_field(reader, 0, "an epoch");
  manifest.version = read_field(reader, 0, "a version");
  manifest.base = read_field(reader, -1, "a base version");
  manifest.route = reader.choice(WeightRoute::kLink);
  manifest.chunk_bytes = read_field(reader, 1, "the size of a chunk");
  read_checksum(reader, manifest.checksum);
  int64_t elements = 0;
  for (auto left = reader.length(kPartBytes); left > 0; --left) {
    manifest.parts.push_back(read_part(reader));
    elements += manifest.parts.back().end - manifest.parts.back().begin;
    if (elements > kMaxElements) throw FormatError("the parts of a rank's weights have {} elements.", elements);
  }
  check_end(reader, "a list of weights");
  return manifest;
}

std::string encode_chunk_header(const WeightChunk& chunk) {
  WireWriter writer;
  writer.number(chunk.request);
  writer.number(chunk.index);
  writer.number(static_cast<uint8_t>(chunk.encoding));
  writer.number(chunk.checksum);
  return writer.take();
}

WeightChunk decode_weight_chunk(std::string_view bytes) {
  WireReader reader(bytes.substr(0, kWeightChunkHeaderBytes));
  WeightChunk chunk;
  chunk.request = read_request(reader);
  chunk.index = read_field(reader, 0, "the number of a chunk");
  chunk.encoding = reader.choice(ChunkEncoding::kDelta);
  chunk.checksum = reader.number<uint64_t>();
  chunk.bytes = bytes.substr(kWeightChunkHeaderBytes);
  return chunk;
}

std::string encode_request_number(int64_t request) {
  WireWriter writer;
  writer.number(request);
  return writer.take();
}

int64_t decode_request_number(std::string_view bytes) {
  WireReader reader(bytes);
  const int64_t request = read_request(reader);
  check_end(reader, "a message about weights");
  return request;
}

}  // namespace temper
