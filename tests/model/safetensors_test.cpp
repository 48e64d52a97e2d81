#include "model/safetensors.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cstring>
#include <filesystem>
#include <fstream>

#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;

class Safetensors : public testing::Test {
 protected:
  void SetUp() override {
    folder_ = std::filesystem::temp_directory_path() / format("temper_safetensors_{}", ::getpid());
    std::filesystem::create_directories(folder_);
    path_ = (folder_ / "x.safetensors").string();
  }
  void TearDown() override { std::filesystem::remove_all(folder_); }

  void write(std::string_view header, size_t data_bytes) {
    const uint64_t size = header.size();
    std::string bytes(reinterpret_cast<const char*>(&size), 8);
    bytes += header;
    bytes.append(data_bytes, '\0');
    write_file_atomically(path_, bytes);
  }
  std::string message_of_opening() {
    try {
      SafetensorsFile file(path_);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "accepted";
  }
  std::string message_of(std::string_view header, size_t data_bytes) {
    write(header, data_bytes);
    const std::string message = message_of_opening();
    EXPECT_THAT(message, HasSubstr(path_));
    return message;
  }

  std::filesystem::path folder_;
  std::string path_;
};

TEST_F(Safetensors, WhatIsWrittenIsReadInEveryDtype) {
  const at::Tensor a = at::tensor({1.5f, -2.25f, 3e-40f, 65504.0f, 0.1f, -0.0f}).view({2, 3});
  const at::Tensor scalar = at::tensor(7.0f).view({});
  const at::Tensor none = at::zeros({0, 4});
  for (const auto dtype : {at::kFloat, at::kBFloat16, at::kHalf}) {
    write_safetensors(path_, {{"b", a}, {"a.none", none}, {"a.scalar", scalar}}, dtype);
    const SafetensorsFile file(path_);
    EXPECT_EQ(file.entries().size(), 3u);
    EXPECT_EQ(file.metadata().at("format"), "pt");
    EXPECT_TRUE(at::equal(file.read("b"), a.to(dtype)));
    EXPECT_TRUE(at::equal(file.read("a.scalar"), scalar.to(dtype)));
    EXPECT_EQ(file.read("a.none").sizes(), at::IntArrayRef({0, 4}));
    at::Tensor converted = at::empty({2, 3});
    file.read_into("b", converted);
    EXPECT_TRUE(at::equal(converted, a.to(dtype).to(at::kFloat)));
    EXPECT_EQ(file.find("c"), nullptr);
    EXPECT_THROW(file.read("c"), FormatError);
    EXPECT_THROW(file.read_into("b", at::empty({3, 2})), FormatError);
  }
}

// Fixtures were written by the safetensors library.
TEST_F(Safetensors, FilesAreByteForByteThoseOfTheLibrary) {
  for (const char* name : {"llama", "llama_bias", "qwen2", "qwen3"}) {
    const std::string original = std::string(TEMPER_TEST_DATA "/") + name + "/model.safetensors";
    const SafetensorsFile file(original);
    std::vector<SafetensorsItem> items;
    for (const SafetensorsEntry& entry : file.entries()) items.push_back({entry.name, file.read(entry.name)});
    std::reverse(items.begin(), items.end());
    write_safetensors(path_, items, file.entries().front().dtype);
    EXPECT_EQ(read_file(path_), read_file(original)) << name;
  }
}

TEST_F(Safetensors, DataThatIsNotAlignedIsRead) {
  const float values[] = {1.0f, 2.0f};
  std::string header = R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})";
  if (header.size() % 4 == 0) header += ' ';
  const uint64_t size = header.size();
  std::string bytes(reinterpret_cast<const char*>(&size), 8);
  bytes += header;
  bytes.append(reinterpret_cast<const char*>(values), 8);
  write_file_atomically(path_, bytes);
  at::Tensor out = at::empty({2});
  SafetensorsFile(path_).read_into("x", out);
  EXPECT_TRUE(at::equal(out, at::tensor({1.0f, 2.0f})));
}

TEST_F(Safetensors, EveryTruncationIsAFormatError) {
  const std::string whole = read_file(TEMPER_TEST_DATA "/qwen3/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), 8);
  for (const size_t kept :
       {size_t{0}, size_t{5}, size_t{8}, size_t{100}, size_t(8 + header_bytes), whole.size() / 2, whole.size() - 1}) {
    write_file_atomically(path_, whole.substr(0, kept));
    EXPECT_THAT(message_of_opening(), AllOf(HasSubstr(path_), HasSubstr("fetch it again"))) << kept << " bytes";
  }
  write_file_atomically(path_, whole + "x");
  EXPECT_THAT(message_of_opening(), HasSubstr("the tensors end at byte"));
}

TEST_F(Safetensors, LiesOfTheHeaderNameTheTensor) {
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,4]}})", 4),
              AllOf(HasSubstr("tensor x"), HasSubstr("takes 8 bytes, data_offsets span 4")));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}})", 4),
              AllOf(HasSubstr("tensor x"), HasSubstr("do not lie within the 4 bytes")));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[8,4]}})", 8),
              HasSubstr("do not lie within"));
  EXPECT_THAT(
      message_of(
          R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[2,6]}})",
          6),
      AllOf(HasSubstr("tensor y"), HasSubstr("overlap")));
  EXPECT_THAT(
      message_of(
          R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"y":{"dtype":"F32","shape":[1],"data_offsets":[8,12]}})",
          12),
      AllOf(HasSubstr("tensor y"), HasSubstr("leave a hole")));
  EXPECT_THAT(
      message_of(
          R"({"x":{"dtype":"F32","shape":[1],"data_offsets":[0,4]},"x":{"dtype":"F32","shape":[1],"data_offsets":[4,8]}})",
          8),
      HasSubstr("tensor x is listed twice"));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F8_E4M3","shape":[4],"data_offsets":[0,4]}})", 4),
              AllOf(HasSubstr("tensor x"), HasSubstr("F8_E4M3"), HasSubstr("F32, BF16 and F16")));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","shape":[-1],"data_offsets":[0,4]}})", 4), HasSubstr("shape is [-1]"));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","shape":[4294967296,4294967296,4294967296],"data_offsets":[0,0]}})", 0),
              HasSubstr("beyond any file"));
  EXPECT_THAT(message_of(R"({"x":{"dtype":"F32","data_offsets":[0,4]}})", 4), HasSubstr("has no list shape"));
  EXPECT_THAT(message_of(R"({"x":3})", 0), HasSubstr("tensor x"));
}

TEST_F(Safetensors, HeadersThatAreNoJsonAreRefused) {
  EXPECT_THAT(message_of("{\"x\xff\": 1}", 0), HasSubstr("not UTF-8 JSON"));
  EXPECT_THAT(message_of("{", 0), HasSubstr("not UTF-8 JSON"));
  EXPECT_THAT(message_of("[1]", 0), HasSubstr("a JSON object is needed"));
  write_file_atomically(path_, std::string(100, '\x7f'));
  EXPECT_THAT(message_of_opening(), HasSubstr("the header claims"));
}

TEST_F(Safetensors, FlippedBytesOfTheHeaderAreReadOrRefusedButNeverFollowedOutOfTheFile) {
  const std::string whole = read_file(TEMPER_TEST_DATA "/llama/model.safetensors");
  uint64_t header_bytes = 0;
  std::memcpy(&header_bytes, whole.data(), 8);
  SplitMix64 random(1);
  int refused = 0;
  for (int i = 0; i < 300; ++i) {
    std::string damaged = whole;
    const auto place = static_cast<size_t>(random.in_range(0, static_cast<int64_t>(header_bytes) + 7));
    damaged[place] = static_cast<char>(random.in_range(0, 255));
    std::ofstream(path_, std::ios::binary) << damaged;
    try {
      const SafetensorsFile file(path_);
      for (const SafetensorsEntry& entry : file.entries()) file.read(entry.name);
    } catch (const FormatError&) {
      ++refused;
    }
  }
  EXPECT_GT(refused, 150);
}

TEST_F(Safetensors, FilesThatCannotBeMadeAreIoErrors) {
  try {
    write_safetensors((folder_ / "absent" / "x").string(), {{"x", at::ones({1})}}, at::kFloat);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("Check that the folder exists"));
  }
  EXPECT_THROW(write_safetensors("/dev/full", {{"x", at::ones({1})}}, at::kFloat), IoError);
}

}  // namespace
}  // namespace temper
