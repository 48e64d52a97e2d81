#include "checkpoint/manifest.h"

#include <gmock/gmock.h>

#include "checkpoint/base64.h"
#include "core/hash.h"
#include "core/rng.h"
#include "tests/checkpoint/example_state.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

Manifest example_manifest() {
  Manifest manifest;
  manifest.header = example_state(120).header;
  manifest.header.time = 1700000000.125;
  manifest.writer = "temper 0.1.0";
  manifest.mesh = {2, 3, 4};
  manifest.files = {{"shard_00000.h5", kBlockBytes + 5, std::string(32, 'a'), {1, 0xfedcba9876543210u}},
                    {"shard_00001.h5", 4096, std::string(32, 'b'), {3}},
                    {"global.h5", 0, std::string(32, 'c'), {}}};
  manifest.tensors = {{"model/w", at::kFloat, {4, 6}, {{0, 2048, {0, 0}, {4, 2}}, {1, 0, {0, 2}, {4, 4}}}},
                      {"model/s", at::kBFloat16, {}, {{1, 96, {}, {}}}}};
  return manifest;
}

// The manifest with `from` replaced by `to` and the checksum made right again: what an attacker would write.
std::string forged(const std::string& from, const std::string& to,
                   std::string text = encode_manifest(example_manifest())) {
  text.resize(text.size() - 46);
  const size_t place = text.find(from);
  EXPECT_NE(place, std::string::npos) << from;
  text.replace(place, from.size(), to);
  return text + "\"checksum\":\"" + xxh3_128_hex(text) + "\"}";
}

std::string refusal(const std::string& text) {
  return error_text<FormatError>([&] { parse_manifest(text, "c/manifest.json"); });
}

TEST(Manifest, ReadsWhatItWrites) {
  const Manifest wanted = example_manifest();
  const Manifest read = parse_manifest(encode_manifest(wanted), "c/manifest.json");
  expect_same_header(read.header, wanted.header);
  EXPECT_EQ(read.header.time, 1700000000.125);
  EXPECT_EQ(read.writer, "temper 0.1.0");
  EXPECT_EQ(read.mesh.tensor_parallel, 4);
  ASSERT_EQ(read.files.size(), 3u);
  EXPECT_EQ(read.files[0].blocks, (std::vector<uint64_t>{1, 0xfedcba9876543210u}));
  EXPECT_EQ(read.files[1].xxh3_128, std::string(32, 'b'));
  ASSERT_EQ(read.tensors.size(), 2u);
  EXPECT_EQ(read.tensors[0].boxes[1].start, (std::vector<int64_t>{0, 2}));
  EXPECT_EQ(read.tensors[0].boxes[0].offset, 2048);
  EXPECT_EQ(read.tensors[1].dtype, at::kBFloat16);
}

TEST(Manifest, EndsWithTheChecksumOfAllBytesBefore) {
  const std::string text = encode_manifest(example_manifest());
  const size_t key = text.rfind("\"checksum\":\"");
  ASSERT_EQ(key, text.size() - 46);
  EXPECT_EQ(text.substr(key + 12, 32), xxh3_128_hex(text.substr(0, key)));
  EXPECT_EQ(text.substr(text.size() - 2), "\"}");
}

TEST(Manifest, EveryFlippedBitAndEveryCutIsDetected) {
  const std::string good = encode_manifest(example_manifest());
  for (size_t i = 0; i < good.size() * 8; ++i) {
    std::string bad = good;
    bad[i / 8] = static_cast<char>(bad[i / 8] ^ (1 << (i % 8)));
    EXPECT_THROW(parse_manifest(bad, "m"), FormatError) << "bit " << i;
  }
  for (size_t length = 0; length < good.size(); ++length)
    EXPECT_THROW(parse_manifest(good.substr(0, length), "m"), FormatError) << "length " << length;
  EXPECT_THROW(parse_manifest(good + "\n", "m"), FormatError);
}

TEST(Manifest, NewerFormatVersionIsRefusedWithBothVersions) {
  EXPECT_THAT(refusal(forged("\"format_version\":1,\n\"writer\":\"temper 0.1.0\"",
                             "\"format_version\":2,\n\"writer\":\"temper 9.0\"")),
              AllOf(HasSubstr("written by temper 9.0 in checkpoint format version 2"),
                    HasSubstr(std::string("temper ") + TEMPER_VERSION + ", reads version 1"), HasSubstr("as new as")));
}

TEST(Manifest, MembersOfLaterMinorAdditionsAreIgnored) {
  EXPECT_EQ(parse_manifest(forged("\"run\":", "\"mood\":[{\"fine\":true}],\n\"run\":"), "m").header.run, "demo");
}

TEST(Manifest, PathsThatLeaveTheFolderAreRefused) {
  for (const char* name :
       {"../shard_00000.h5", "/etc/passwd", "shard_00001.h5", "shard_0.h5", "", "shard_00000.h5\\u0000"})
    EXPECT_THAT(refusal(forged("\"shard_00000.h5\"", format("\"{}\"", name))),
                HasSubstr("shard_00000.h5 belongs there"))
        << name;
  for (const char* name : {"../../w", "model/../w", "/w", "model//w", "model/w/", ".", "", "a b", "w\\u0000"})
    EXPECT_THAT(refusal(forged("\"model/w\"", format("\"{}\"", name))), HasSubstr("the name")) << name;
}

TEST(Manifest, DuplicateNamesAreRefused) {
  EXPECT_THAT(refusal(forged("\"model/s\"", "\"model/w\"")), HasSubstr("the tensor model/w is listed twice"));
  EXPECT_THAT(refusal(forged("\"step\":120", "\"step\":120,\n\"step\":121")), HasSubstr("\"step\" occurs twice"));
  EXPECT_THAT(refusal(forged("\"cursor\":\"\"", "\"cursor\":\"\",\"cursor\":\"x\"")),
              HasSubstr("\"cursor\" occurs twice"));
  EXPECT_THAT(refusal(forged("\"shard_00001.h5\"", "\"shard_00000.h5\"")), HasSubstr("shard_00001.h5 belongs there"));
}

TEST(Manifest, LyingSizesAreRefused) {
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":9223372036854775807")), HasSubstr("outside 0 to 2^62"));
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":4611686018427387904")),
              HasSubstr("for each of 4398046511104 blocks"));
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":-1")), HasSubstr("outside 0 to 2^62"));
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":1e3")), HasSubstr("not an integer"));
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":99999999999999999999999")), HasSubstr("not an integer"));
  EXPECT_THAT(refusal(forged("\"size\":4096", "\"size\":1e999")), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(forged("\"shape\":[4,6]", "\"shape\":[4611686018427387904,4611686018427387904]")),
              HasSubstr("more than 2^59"));
  EXPECT_THAT(refusal(forged("\"shape\":[4,6]", "\"shape\":[4,7]")), HasSubstr("cover 24 of 28"));
  EXPECT_THAT(refusal(forged("\"shape\":[4,6]", "\"shape\":[4]")),
              HasSubstr("does not have the tensor's 1 dimensions"));
  EXPECT_THAT(refusal(forged("\"offset\":96", "\"offset\":4095")),
              HasSubstr("takes 2 bytes from byte 4095 of shard_00001.h5, which has 4096"));
  EXPECT_THAT(refusal(forged("\"offset\":96", "\"offset\":4611686018427387903")), HasSubstr("which has 4096"));
  EXPECT_THAT(refusal(forged("\"shape\":[],", "\"shape\":[" + std::string(80, '1') + "],")),
              HasSubstr("not an integer"));
  std::string many = "1";
  for (int i = 0; i < 32; ++i) many += ",1";
  EXPECT_THAT(refusal(forged("\"shape\":[],", "\"shape\":[" + many + "],")), HasSubstr("has 33 dimensions"));
}

TEST(Manifest, OverlapsAndForeignShardsAreRefused) {
  EXPECT_THAT(refusal(forged("\"start\":[0,2]", "\"start\":[0,1]")), HasSubstr("boxes 0 and 1 overlap"));
  EXPECT_THAT(refusal(forged("\"offset\":96", "\"offset\":62")),
              HasSubstr("model/w and model/s share bytes of shard_00001.h5"));
  EXPECT_THAT(refusal(forged("\"shard\":1,\"offset\":96", "\"shard\":2,\"offset\":96")),
              HasSubstr("lies in shard 2, which is not listed"));
  EXPECT_THAT(refusal(forged("\"shard\":1,\"offset\":96", "\"shard\":4294967297,\"offset\":96")),
              HasSubstr("above 99999"));
}

TEST(Manifest, MissingOrIllTypedMembersAreNamed) {
  for (const char* key : {"format", "format_version", "writer", "run", "stage", "epoch", "step", "policy_version",
                          "time", "mesh", "data_hash", "config", "model", "blobs", "files", "tensors"}) {
    EXPECT_THAT(refusal(forged(format("\"{}\":", key), "\"elsewhere\":")), HasSubstr(format("\"{}\"", key)));
    refusal(forged(format("\"{}\":", key), format("\"{}\":null,\"elsewhere\":", key)));
  }
  EXPECT_THAT(refusal(forged("\"temper-checkpoint\"", "\"other\"")), HasSubstr("its format is not temper-checkpoint"));
  EXPECT_THAT(refusal(forged("\"dtype\":\"f32\"", "\"dtype\":\"f99\"")), HasSubstr("unknown dtype \"f99\""));
  EXPECT_THAT(refusal(forged("{\"base64\":\"", "{\"base64\":\"!")), HasSubstr("neither a text nor"));
  EXPECT_THAT(refusal(forged(std::string(32, 'a'), std::string(32, 'A'))), HasSubstr("32 hexadecimal digits"));
  EXPECT_THAT(refusal(forged("{", "[")), HasSubstr("not valid JSON"));
  EXPECT_THAT(refusal(forged("\"blobs\":{", "\"deep\":" + std::string(100000, '[') + ",\"blobs\":{")),
              HasSubstr("not valid JSON"));
}

// What a checksum cannot stop: someone who makes it right again. Such a manifest is refused, or it is consistent in
// itself.
TEST(Manifest, DamageWithARightChecksumIsRefusedOrConsistent) {
  const std::string good = encode_manifest(example_manifest());
  const std::string body = good.substr(0, good.size() - 46);
  SplitMix64 random(20);
  int64_t refused = 0;
  for (int round = 0; round < 5000; ++round) {
    std::string text = body;
    const auto last = static_cast<int64_t>(text.size()) - 1;
    for (int64_t edits = random.in_range(1, 3); edits > 0; --edits) {
      const auto place = static_cast<size_t>(random.in_range(0, last));
      constexpr std::string_view kPieces = "0123456789[]{},:\"-/.eax";
      text[place] = kPieces[static_cast<size_t>(random.in_range(0, static_cast<int64_t>(kPieces.size()) - 1))];
    }
    text += "\"checksum\":\"" + xxh3_128_hex(text) + "\"}";
    try {
      const Manifest read = parse_manifest(text, "m");
      for (const TensorRecord& tensor : read.tensors) {
        EXPECT_EQ(find_coverage_fault(tensor), "");
        for (const Box& box : tensor.boxes)
          EXPECT_LE(box.offset + num_elements(box.size) * dtype_size_bytes(tensor.dtype),
                    read.files.at(static_cast<size_t>(box.shard)).size_bytes);
      }
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 1000);
}

TEST(Manifest, StepNamesAreCanonical) {
  EXPECT_EQ(step_name(120), "step_000120");
  EXPECT_EQ(step_name(1234567), "step_1234567");
  EXPECT_EQ(parse_step_name("step_000120"), 120);
  EXPECT_EQ(parse_step_name("step_1234567"), 1234567);
  for (const char* name : {"step_", "step_120", "step_0000120", "step_00012x", "step_000120.tmp-0",
                           "step_000120.aside-0", "STEP_000120", "step_-00001", "step_99999999999999999999999"})
    EXPECT_EQ(parse_step_name(name), -1) << name;
}

TEST(Base64, KnownTextsAndAllLengths) {
  EXPECT_EQ(encode_base64("Man"), "TWFu");
  EXPECT_EQ(encode_base64("Ma"), "TWE=");
  EXPECT_EQ(encode_base64("M"), "TQ==");
  std::string bytes;
  for (int i = 0; i < 300; ++i) {
    std::string decoded;
    ASSERT_TRUE(decode_base64(encode_base64(bytes), &decoded));
    EXPECT_EQ(decoded, bytes);
    bytes += static_cast<char>(i * 37);
  }
  for (const char* text : {"TQ=", "TQ=A", "T===", "====", "TR==", "TW!u", "TQ==TQ=="})
    EXPECT_FALSE(decode_base64(text, &bytes)) << text;
}

}  // namespace
}  // namespace temper
