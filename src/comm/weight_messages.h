// What a trainer rank's weight server and its readers say to each other, as plain structs, and their bytes: payloads of
// the channel's frames (comm/channel.h), whose checksum covers them on the way. The checksums in here cover the weights
// themselves, from the publisher's memory to the reader's.
//
//   server                              reader
//   Offer, at first and at each publish
//                                       Request (again: the one before is forgotten)
//   Manifest, at once
//   Chunk 0, 1, ... in their turn, or the bytes by a link (comm/weight_link.h); or Gone
//   LinkLost, in place of the bytes, when a link has failed: ask for chunks
//                                       Cancel
//
// Numbers and texts lie one after another as comm/wire_format.h writes them, in the order of the members.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "comm/frame.h"
#include "comm/weight_types.h"
#include "core/rollout_types.h"

namespace temper {

enum WeightMessageType : uint16_t {
  kWeightOffer = kFirstApplicationType,
  kWeightRequest,
  kWeightManifest,
  kWeightChunk,
  kWeightGone,
  kWeightCancel,
  kWeightLinkLost,
  kLastWeightMessage = kWeightLinkLost,
};

struct WeightOffer {
  int64_t epoch = 0;
  std::vector<PolicyVersion> versions = {};  // that can be had, ascending; empty before the first
};

struct WeightRequest {
  int64_t request = 0;  // the reader's number, from 1: greater with each request of a connection
  int64_t epoch = 0;
  PolicyVersion version = 0;
  PolicyVersion base = -1;         // a version of this epoch that the reader has of this rank; -1: none
  std::string base_checksum = {};  // its Manifest::checksum
  std::string link = {};           // id of a link that the bytes may come by; empty: none
};

enum class WeightRoute : uint8_t { kChunks, kLink };

// What one rank holds of a version. Its stream is the bytes of its parts, one after another, cut into chunks.
struct WeightManifest {
  int64_t request = 0;  // that it answers
  int64_t epoch = 0;
  PolicyVersion version = 0;
  PolicyVersion base = -1;  // what chunks are deltas from; -1: there are no deltas
  WeightRoute route = WeightRoute::kChunks;
  int64_t chunk_bytes = 1;
  std::string checksum = {};           // XXH3-128 of the stream, 32 hexadecimal digits
  std::vector<WeightPart> parts = {};  // without bytes

  int64_t stream_bytes() const;
  int64_t num_chunks() const;
  int64_t link_piece_bytes() const;  // of the stream, that a link carries at a time: whole chunks, about 64 MiB
};

enum class ChunkEncoding : uint8_t { kRaw, kDelta };

struct WeightChunk {
  int64_t request = 0;
  int64_t index = 0;
  ChunkEncoding encoding = ChunkEncoding::kRaw;
  uint64_t checksum = 0;        // XXH3-64 of the chunk of the stream, whatever the encoding
  std::string_view bytes = {};  // as encoded: after the header, to the end of the payload
};
constexpr size_t kWeightChunkHeaderBytes = 8 + 8 + 1 + 8;

// Of a Gone, a LinkLost and a Cancel there is the request's number alone.

std::string encode(const WeightOffer& offer);
std::string encode(const WeightRequest& request);
std::string encode(const WeightManifest& manifest);
std::string encode_chunk_header(const WeightChunk& chunk);
std::string encode_request_number(int64_t request);

// FormatError where the bytes are not such a message to the last bit. Lengths are checked before anything is allocated;
// a decoded manifest's ranges lie in their shapes and its sums fit 63 bits.
WeightOffer decode_weight_offer(std::string_view bytes);
WeightRequest decode_weight_request(std::string_view bytes);
WeightManifest decode_weight_manifest(std::string_view bytes);
WeightChunk decode_weight_chunk(std::string_view bytes);  // its bytes lie in those given
int64_t decode_request_number(std::string_view bytes);

bool same_parts(const std::vector<WeightPart>& a, const std::vector<WeightPart>& b);  // but for their bytes
int64_t num_weight_elements(const std::vector<int64_t>& shape);  // FormatError where it is negative or beyond 2^48

}  // namespace temper
