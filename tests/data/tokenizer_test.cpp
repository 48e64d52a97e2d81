#include "data/tokenizer.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <ctime>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>
#include <thread>

#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "data/utf8.h"
#include "tests/data/scratch_directory.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;
using Ids = std::vector<int32_t>;

const std::string kFixtures = std::string(TEMPER_TEST_DATA) + "/tokenizers";

std::vector<std::string> read_lines(const std::string& path) {
  std::ifstream in(path, std::ios::binary);
  EXPECT_TRUE(in.good()) << path;
  std::vector<std::string> lines;
  for (std::string line; std::getline(in, line);) lines.push_back(line);
  return lines;
}

std::string hash_of(const Ids& ids) { return hex64(xxh3_64(ids.data(), ids.size() * sizeof(int32_t))).substr(8); }

// Every text of texts.jsonl against the ids that Hugging Face `tokenizers` gave
// (tests/support/make_tokenizer_fixtures.py).
void compare_with_fixture(const Tokenizer& tokenizer, const std::string& directory, const std::string& texts_path) {
  const auto texts = read_lines(texts_path), expected = read_lines(directory + "/ids.txt");
  ASSERT_EQ(texts.size(), expected.size());
  ASSERT_GE(texts.size(), 10000u);
  size_t equal = 0, num_bytes = 0;
  double seconds = 0;
  for (size_t i = 0; i < texts.size(); ++i) {
    const std::string text = json::parse(texts[i]);
    const std::clock_t start = std::clock();
    const Ids ids = tokenizer.encode(text);
    seconds += static_cast<double>(std::clock() - start) / CLOCKS_PER_SEC;
    num_bytes += text.size();
    equal += hash_of(ids) == expected[i];
    if (hash_of(ids) != expected[i] && i - equal < 10) ADD_FAILURE() << "line " << i + 1 << ": " << texts[i];
  }
  std::cout << directory.substr(directory.rfind('/') + 1) << ": " << texts.size() << " lines compared, " << equal
            << " equal, " << static_cast<double>(num_bytes) / seconds / 1e6 << " MB/s of processor time\n";
  EXPECT_EQ(equal, texts.size());
}

void compare_explicit(const Tokenizer& tokenizer, const std::string& directory) {
  const auto lines = read_lines(directory + "/explicit.jsonl");
  ASSERT_GE(lines.size(), 30u);
  for (const auto& line : lines) {
    const json record = json::parse(line);
    const std::string text = record["text"];
    SCOPED_TRACE(record["text"].dump());
    const Ids ids = tokenizer.encode(text);
    EXPECT_EQ(ids, record["ids"].get<Ids>());
    EXPECT_EQ(tokenizer.encode(text, true, true), record["with_special"].get<Ids>());
    EXPECT_EQ(tokenizer.encode(text, false), record["not_parsed"].get<Ids>());
    EXPECT_EQ(tokenizer.decode(ids, false), record["decoded"].get<std::string>());
    EXPECT_EQ(tokenizer.decode(ids), record["decoded_plain"].get<std::string>());
    const std::span<const int32_t> all(ids);
    EXPECT_EQ(tokenizer.decode(all.first(ids.size() / 2)), record["halves"][0].get<std::string>());
    EXPECT_EQ(tokenizer.decode(all.subspan(ids.size() / 2)), record["halves"][1].get<std::string>());
    std::string bytes;
    for (const int32_t id : ids) bytes += tokenizer.token_bytes(id);
    EXPECT_EQ(to_valid_utf8(bytes), record["decoded"].get<std::string>());
  }
}

class TokenizerParity : public testing::TestWithParam<const char*> {};

TEST_P(TokenizerParity, IdsEqualThoseOfHuggingFaceTokenizersOnMixedText) {
  const std::string directory = kFixtures + "/" + GetParam();
  const Tokenizer tokenizer = Tokenizer::load(directory);
  compare_with_fixture(tokenizer, directory, kFixtures + "/texts.jsonl");
  compare_explicit(tokenizer, directory);
}
INSTANTIATE_TEST_SUITE_P(Families, TokenizerParity, testing::Values("smollm2", "llama3", "qwen", "stripping", "byte"),
                         [](const auto& parameter) { return std::string(parameter.param); });

// compare_tokenizer.py points this at the directory of a real model.
TEST(TokenizerParity, AlsoHoldsOnTheDirectoryNamedByTheEnvironment) {
  const char* directory = std::getenv("TEMPER_TOKENIZER_FIXTURE");
  if (directory == nullptr) return;
  compare_with_fixture(Tokenizer::load(directory), directory, std::string(directory) + "/texts.jsonl");
}

TEST(Tokenizer, BytesOfTextAreTheIdsOfTheByteTokenizer) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_THAT(tokenizer.encode("37+45="), ElementsAre('3', '7', '+', '4', '5', '='));
  EXPECT_THAT(tokenizer.encode("é<|im_end|>"), ElementsAre(0xC3, 0xA9, 258));
  EXPECT_EQ(tokenizer.vocab_size(), 260);
  EXPECT_THAT(tokenizer.eos_ids(), ElementsAre(256));
  EXPECT_EQ(tokenizer.pad_id(), 259);
  EXPECT_TRUE(tokenizer.is_special(256));
  EXPECT_FALSE(tokenizer.is_special(255));
  EXPECT_EQ(tokenizer.decode(Ids{'8', '2', 256}), "82");
  EXPECT_EQ(tokenizer.decode(Ids{'8', '2', 256}, false), "82<|endoftext|>");
}

TEST(Tokenizer, TheByteTokenizerWritesTheDirectoryThatTheFixtureHolds) {
  const ScratchDirectory scratch;
  Tokenizer::bytes().save(scratch.path());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json"})
    EXPECT_EQ(read_file(scratch.path() + "/" + name), read_file(kFixtures + "/byte/" + name)) << name;
  EXPECT_EQ(Tokenizer::load(scratch.path()).encode("a\n<|pad|>"), Tokenizer::bytes().encode("a\n<|pad|>"));
}

TEST(Tokenizer, SaveWritesTheFilesByteForByte) {
  const ScratchDirectory scratch;
  Tokenizer::load(kFixtures + "/llama3").save(scratch.path());
  for (const char* name : {"tokenizer.json", "tokenizer_config.json"})
    EXPECT_EQ(read_file(scratch.path() + "/" + name), read_file(kFixtures + "/llama3/" + name)) << name;
}

TEST(Tokenizer, EosIdsAreTheTokenizersFirstThenTheGenerationConfigs) {
  const Tokenizer tokenizer = Tokenizer::load(kFixtures + "/llama3");
  EXPECT_THAT(tokenizer.eos_ids(),
              ElementsAre(*tokenizer.token_id("<|eot_id|>"), *tokenizer.token_id("<|end_of_text|>")));
  EXPECT_EQ(tokenizer.pad_id(), tokenizer.eos_ids()[0]);
  EXPECT_THAT(Tokenizer::load(kFixtures + "/smollm2").eos_ids(), ElementsAre(2));
}

TEST(Tokenizer, EosIdsFallBackToConfigJson) {
  const ScratchDirectory scratch;
  scratch.write("tokenizer.json", read_file(kFixtures + "/smollm2/tokenizer.json"));
  EXPECT_THAT(Tokenizer::load(scratch.path()).eos_ids(), ElementsAre());
  scratch.write("config.json", R"({"eos_token_id": [0, 2], "pad_token_id": 1, "bos_token_id": 1})");
  const Tokenizer tokenizer = Tokenizer::load(scratch.path());
  EXPECT_THAT(tokenizer.eos_ids(), ElementsAre(0, 2));
  EXPECT_EQ(tokenizer.pad_id(), 1);
  EXPECT_EQ(tokenizer.bos_id(), 1);
}

TEST(Tokenizer, InvalidUtf8IsReadAsReplacementCharacters) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  // Python: b"...".decode("utf-8", "replace")
  EXPECT_EQ(tokenizer.decode(tokenizer.encode("a\xff\xc3z\xe2\x82!\xed\xa0\x80\xf0\x9f\x98")),
            "a\uFFFD\uFFFDz\uFFFD!\uFFFD\uFFFD\uFFFD\uFFFD");
  EXPECT_EQ(tokenizer.decode(Ids{0xE2, 0x82}), "\uFFFD");
  EXPECT_EQ(tokenizer.token_bytes(0xE2), "\xE2");
}

TEST(Tokenizer, IdsOutsideTheVocabularyDecodeToNothing) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  EXPECT_EQ(tokenizer.decode(Ids{-1, 'a', 260, 1 << 30}), "a");
  EXPECT_EQ(tokenizer.token_bytes(-5), "");
  EXPECT_FALSE(tokenizer.is_special(1 << 30));
}

TEST(Tokenizer, LongRunsWithoutBoundariesAreEncoded) {
  const Tokenizer tokenizer = Tokenizer::load(kFixtures + "/qwen");
  for (const std::string unit : {"a", " ", "\n", "字", "!"}) {
    std::string text;
    for (int i = 0; i < 200000; ++i) text += unit;
    EXPECT_EQ(tokenizer.decode(tokenizer.encode(text)), text);
  }
}

TEST(Tokenizer, ManyThreadsGetTheSameIds) {
  const Tokenizer tokenizer = Tokenizer::load(kFixtures + "/smollm2");
  const auto texts = read_lines(kFixtures + "/texts.jsonl");
  std::vector<std::vector<Ids>> results(4);
  std::vector<std::thread> threads;
  for (auto& result : results)
    threads.emplace_back([&] {
      for (size_t i = 0; i < 500; ++i) result.push_back(tokenizer.encode(texts[i]));
    });
  for (auto& thread : threads) thread.join();
  for (const auto& result : results) EXPECT_EQ(result, results[0]);
}

template <class Kind>
void expect_load_fails(const std::string& tokenizer_json, const std::vector<std::string>& needles) {
  const ScratchDirectory scratch;
  if (!tokenizer_json.empty()) scratch.write("tokenizer.json", tokenizer_json);
  try {
    Tokenizer::load(scratch.path());
    FAIL() << "loaded " << tokenizer_json.substr(0, 80);
  } catch (const Kind& error) {
    EXPECT_THAT(error.what(), HasSubstr(scratch.path() + "/tokenizer.json"));
    for (const auto& needle : needles) EXPECT_THAT(error.what(), HasSubstr(needle));
  }
}

TEST(BadTokenizer, MissingFileIsAnIoErrorThatNamesTheByteTokenizer) {
  expect_load_fails<IoError>("", {"no such file", "model.init.tokenizer"});
}

TEST(BadTokenizer, TruncatedJsonIsAFormatErrorWithThePlace) {
  const std::string whole = read_file(kFixtures + "/smollm2/tokenizer.json");
  expect_load_fails<FormatError>(whole.substr(0, whole.size() / 2), {"not valid JSON", "column"});
}

TEST(BadTokenizer, MissingPartsAndWrongTypesAreFormatErrors) {
  expect_load_fails<FormatError>("{}", {"broken", "model"});
  expect_load_fails<FormatError>("[1, 2]", {"broken"});
  json root = json::parse(read_file(kFixtures + "/smollm2/tokenizer.json"));
  json changed = root;
  changed["model"]["vocab"]["a"] = "x";
  expect_load_fails<FormatError>(changed.dump(), {"broken", "number"});
  changed = root;
  changed["model"]["vocab"]["a"] = -4;
  expect_load_fails<FormatError>(changed.dump(), {"'a'", "-4"});
  changed = root;
  changed["model"]["merges"][7] = "q zzz";
  expect_load_fails<FormatError>(changed.dump(), {"merge 7", "q zzz", "model.vocab"});
  changed = root;
  changed["added_tokens"][0].erase("content");
  expect_load_fails<FormatError>(changed.dump(), {"content"});
}

TEST(BadTokenizer, OtherKindsOfTokenizersAreNamed) {
  const json root = json::parse(read_file(kFixtures + "/smollm2/tokenizer.json"));
  const auto with = [&](const char* key, const json& value) {
    json changed = root;
    changed[key] = value;
    return changed.dump();
  };
  expect_load_fails<FormatError>(with("model", {{"type", "Unigram"}, {"vocab", json::array()}}),
                                 {"Unigram", "byte-level BPE"});
  expect_load_fails<FormatError>(with("pre_tokenizer", {{"type", "Metaspace"}}), {"Metaspace", "ByteLevel"});
  expect_load_fails<FormatError>(with("pre_tokenizer", nullptr), {"no ByteLevel", "SentencePiece"});
  expect_load_fails<FormatError>(with("normalizer", {{"type", "Lowercase"}}), {"Lowercase", "NFC"});
  expect_load_fails<FormatError>(with("decoder", {{"type", "WordPiece"}}), {"WordPiece", "ByteLevel"});
  expect_load_fails<FormatError>(with("post_processor", {{"type", "BertProcessing"}}),
                                 {"BertProcessing", "TemplateProcessing"});
  json split = {{"type", "Split"}, {"pattern", {{"Regex", "(("}}}, {"behavior", "Isolated"}, {"invert", false}};
  expect_load_fails<FormatError>(with("pre_tokenizer", split), {"regular expression '(('", "parenthes"});
}

}  // namespace
}  // namespace temper
