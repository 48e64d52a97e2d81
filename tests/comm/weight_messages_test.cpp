#include "comm/weight_messages.h"

#include <gtest/gtest.h>

#include <functional>

#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

const std::string kChecksum = "0123456789abcdef0123456789abcdef";

WeightManifest example_manifest() {
  return {.request = 3,
          .epoch = 2,
          .version = 9,
          .base = 8,
          .chunk_bytes = 1000,
          .checksum = kChecksum,
          .parts = {{"embed", WeightDtype::kBf16, {4, 300}, 600, 1200, {}},
                    {"scale", WeightDtype::kF32, {}, 0, 1, {}},
                    {"empty", WeightDtype::kInt8, {0, 7}, 0, 0, {}}}};
}

struct Example {
  std::string name, bytes;
  std::function<std::string(std::string_view)> again;  // decoded and encoded
};

std::vector<Example> examples() {
  const auto chunk_again = [](std::string_view bytes) {
    const WeightChunk chunk = decode_weight_chunk(bytes);
    return encode_chunk_header(chunk) + std::string(chunk.bytes);
  };
  return {{"offer", encode(WeightOffer{5, {1, 2, 7}}), [](auto bytes) { return encode(decode_weight_offer(bytes)); }},
          {"request", encode(WeightRequest{1, 2, 3, 1, kChecksum, std::string(128, 'n')}),
           [](auto bytes) { return encode(decode_weight_request(bytes)); }},
          {"manifest", encode(example_manifest()), [](auto bytes) { return encode(decode_weight_manifest(bytes)); }},
          {"chunk", encode_chunk_header({1, 0, ChunkEncoding::kDelta, 77, {}}), chunk_again},
          {"number", encode_request_number(12),
           [](auto bytes) { return encode_request_number(decode_request_number(bytes)); }}};
}

TEST(WeightMessages, ComeBackAsTheyWere) {
  for (const Example& example : examples()) EXPECT_EQ(example.again(example.bytes), example.bytes) << example.name;
  const WeightManifest manifest = decode_weight_manifest(encode(example_manifest()));
  EXPECT_EQ(manifest.version, 9);
  EXPECT_TRUE(same_parts(manifest.parts, example_manifest().parts));
  EXPECT_EQ(manifest.stream_bytes(), 600 * 2 + 4);
  EXPECT_EQ(manifest.num_chunks(), 2);
  const std::string chunk = encode_chunk_header({4, 6, ChunkEncoding::kRaw, 99, {}}) + "weights";
  EXPECT_EQ(decode_weight_chunk(chunk).index, 6);
  EXPECT_EQ(decode_weight_chunk(chunk).checksum, 99U);
  EXPECT_EQ(decode_weight_chunk(chunk).bytes, "weights");
}

TEST(WeightMessages, CutShortTheyAreRefused) {
  for (const Example& example : examples())
    for (size_t size = 0; size < example.bytes.size(); ++size)
      EXPECT_THROW(example.again(std::string_view(example.bytes).substr(0, size)), FormatError)
          << example.name << " " << size;
}

TEST(WeightMessages, ChangedTheyAreRefusedOrSayWhatTheyNowSay) {
  SplitMix64 random(1);
  for (const Example& example : examples())
    for (int trial = 0; trial < 5000; ++trial) {
      std::string bytes = example.bytes;
      for (int64_t changes = random.in_range(1, 4); changes > 0; --changes)
        bytes[random.next() % bytes.size()] = static_cast<char>(random.next());
      try {
        EXPECT_EQ(example.again(bytes), bytes) << example.name;
      } catch (const FormatError&) {
      }
    }
}

TEST(WeightMessages, WhatCannotBeIsRefused) {
  const auto refused = [](const std::function<void(WeightManifest&)>& change) {
    WeightManifest manifest = example_manifest();
    change(manifest);
    EXPECT_THROW(decode_weight_manifest(encode(manifest)), FormatError);
  };
  refused([](WeightManifest& manifest) { manifest.request = 0; });
  refused([](WeightManifest& manifest) { manifest.version = -1; });
  refused([](WeightManifest& manifest) { manifest.base = -2; });
  refused([](WeightManifest& manifest) { manifest.chunk_bytes = 0; });
  refused([](WeightManifest& manifest) { manifest.checksum.pop_back(); });
  refused([](WeightManifest& manifest) { manifest.parts[0].name.clear(); });
  refused([](WeightManifest& manifest) { manifest.parts[0].name.resize(2000, 'x'); });
  refused([](WeightManifest& manifest) { manifest.parts[0].shape[0] = -4; });
  refused([](WeightManifest& manifest) { manifest.parts[0].shape = {int64_t{1} << 40, int64_t{1} << 40}; });
  refused([](WeightManifest& manifest) { manifest.parts[0].shape.assign(17, 1); });
  refused([](WeightManifest& manifest) { manifest.parts[0].begin = -1; });
  refused([](WeightManifest& manifest) { manifest.parts[0].begin = 1201; });
  refused([](WeightManifest& manifest) { manifest.parts[0].end = 1201; });
  EXPECT_THROW(decode_weight_offer(encode(WeightOffer{1, {2, 2}})), FormatError);
  EXPECT_THROW(decode_weight_offer(encode(WeightOffer{1, {3, 2}})), FormatError);
  EXPECT_THROW(decode_weight_offer(encode(WeightOffer{1, {-1, 2}})), FormatError);
  EXPECT_THROW(decode_weight_request(encode(WeightRequest{1, 2, 3, 1, "short"})), FormatError);
  EXPECT_THROW(decode_weight_request(encode(WeightRequest{1, 2, 3, -1, kChecksum})), FormatError);
  EXPECT_THROW(decode_weight_offer(encode(WeightOffer{1, {2}}) + "x"), FormatError);
}

// A count of parts that are not there must not be believed.
TEST(WeightMessages, CountsAreHeldAgainstWhatCame) {
  WeightManifest manifest = example_manifest();
  manifest.parts.clear();
  std::string bytes = encode(manifest);
  bytes.replace(bytes.size() - 8, 8, std::string(7, '\xff') + '\x0f');
  EXPECT_THROW(decode_weight_manifest(bytes), FormatError);
}

}  // namespace
}  // namespace temper
