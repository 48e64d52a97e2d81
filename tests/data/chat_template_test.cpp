#include "data/chat_template.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "data/prompt_encoder.h"
#include "tests/data/chat_ml.h"
#include "tests/data/scratch_directory.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::ElementsAre;
using testing::HasSubstr;

json fixture() { return json::parse(read_file(std::string(TEMPER_TEST_DATA) + "/chat_templates.json")); }

std::string shipped(const std::string& name) {
  for (const auto& entry : fixture())
    if (entry["name"] == name) return entry["template"];
  return "";
}

TEST(ChatTemplate, RendersAsApplyChatTemplateOfTransformers) {
  const json families = fixture();
  ASSERT_EQ(families.size(), 9u);
  for (const auto& family : families) {
    const auto chat = ChatTemplate::recognise(family["template"].get<std::string>(), "fixture");
    for (const auto& test_case : family["cases"]) {
      std::vector<Message> messages;
      for (const auto& message : test_case["messages"]) messages.push_back({message["role"], message["content"]});
      SCOPED_TRACE(family["name"].get<std::string>() + test_case["messages"].dump());
      EXPECT_EQ(chat.render(messages, true), test_case["with_prompt"].get<std::string>());
      EXPECT_EQ(chat.render(messages, false), test_case["without"].get<std::string>());
    }
  }
}

TEST(ChatTemplate, IsReadFromTheModelDirectory) {
  const ScratchDirectory scratch;
  EXPECT_FALSE(ChatTemplate::load(scratch.path()).has_value());
  scratch.write("tokenizer_config.json", json{{"chat_template", nullptr}}.dump());
  EXPECT_FALSE(ChatTemplate::load(scratch.path()).has_value());
  scratch.write("tokenizer_config.json", json{{"chat_template", kChatMl}}.dump());
  EXPECT_EQ(ChatTemplate::load(scratch.path())->render({{"user", "a"}}, true),
            "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\n");
  const json bos = {{"bos_token", {{"content", "<s>"}}}};
  scratch.write("tokenizer_config.json", bos.dump());
  scratch.write("chat_template.jinja", shipped("llama3"));
  EXPECT_EQ(ChatTemplate::load(scratch.path())->render({{"user", "a"}}, false),
            "<s><|start_header_id|>user<|end_header_id|>\n\na<|eot_id|>");
}

TEST(ChatTemplate, TheDefaultOfSeveralNamedTemplatesIsTaken) {
  const ScratchDirectory scratch;
  const json named = {
      {"chat_template", {{{"name", "tool_use"}, {"template", "?"}}, {{"name", "default"}, {"template", kChatMl}}}}};
  scratch.write("tokenizer_config.json", named.dump());
  EXPECT_TRUE(ChatTemplate::load(scratch.path()).has_value());
}

TEST(ChatTemplate, AnUnknownTemplateIsAConfigErrorThatNamesTheSupportedOnesAndRaw) {
  for (const std::string foreign :
       {"{{ messages[0].content }}", "[INST] {{ m }} [/INST]", "<|im_start|>user<|im_sep|>{{ m }}<|im_end|>"}) {
    const ScratchDirectory scratch;
    scratch.write("chat_template.jinja", foreign);
    try {
      ChatTemplate::load(scratch.path());
      FAIL() << foreign;
    } catch (const ConfigError& error) {
      EXPECT_THAT(error.what(), HasSubstr("chat_template.jinja"));
      EXPECT_THAT(error.what(), HasSubstr("ChatML"));
      EXPECT_THAT(error.what(), HasSubstr("--raw"));
    }
  }
}

TEST(ChatTemplate, AnUnknownRoleIsAFormatErrorThatNamesIt) {
  try {
    ChatTemplate::recognise(kChatMl, "x").render({{"robot", "a"}}, true);
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), HasSubstr("'robot'"));
    EXPECT_THAT(error.what(), HasSubstr("assistant"));
  }
}

TEST(PromptEncoder, TheLearnedPartIsTheAnswerAndTheEndOfItsTurn) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const auto chat = ChatTemplate::recognise(kChatMl, "x");
  const PromptEncoder encoder(tokenizer, &chat);
  const SftExample example = encoder.encode_example("1+1", "2");
  const std::string prompt = "<|im_start|>user\n1+1<|im_end|>\n<|im_start|>assistant\n";
  EXPECT_EQ(tokenizer.decode(example.token_ids, false), prompt + "2<|im_end|>");
  EXPECT_EQ(example.prompt_length, static_cast<int64_t>(tokenizer.encode(prompt).size()));
  EXPECT_EQ(encoder.encode("1+1"), tokenizer.encode(prompt));
  ASSERT_EQ(example.loss_mask.size(), example.token_ids.size());
  for (size_t i = 0; i < example.loss_mask.size(); ++i)
    EXPECT_EQ(example.loss_mask[i], static_cast<int64_t>(i) >= example.prompt_length ? 1 : 0);
}

TEST(PromptEncoder, Qwen3LearnsItsEmptyThoughtsWithTheAnswer) {
  const Tokenizer tokenizer = Tokenizer::load(std::string(TEMPER_TEST_DATA) + "/tokenizers/qwen");
  const auto chat = ChatTemplate::recognise(shipped("qwen3"), "x");
  const SftExample example = PromptEncoder(tokenizer, &chat).encode_example({{"user", "1+1"}, {"assistant", "2"}});
  const std::span<const int32_t> ids(example.token_ids);
  EXPECT_EQ(tokenizer.decode(ids.subspan(static_cast<size_t>(example.prompt_length)), false),
            "<think>\n\n</think>\n\n2<|im_end|>");
}

TEST(PromptEncoder, RawTextGetsWhatTheTokenizerPutsAroundIt) {
  const Tokenizer tokenizer = Tokenizer::load(std::string(TEMPER_TEST_DATA) + "/tokenizers/llama3");
  const PromptEncoder encoder(tokenizer, nullptr);
  EXPECT_EQ(tokenizer.decode(encoder.encode("hi"), false), "<|begin_of_text|>hi");
  EXPECT_EQ(tokenizer.decode(encoder.encode_example("hi", " you").token_ids, false),
            "<|begin_of_text|>hi you<|eot_id|>");
  const Tokenizer bytes = Tokenizer::bytes();
  const SftExample example = PromptEncoder(bytes, nullptr).encode_example("1+1=", "2");
  EXPECT_THAT(example.token_ids, ElementsAre('1', '+', '1', '=', '2', 256));
  EXPECT_THAT(example.loss_mask, ElementsAre(0, 0, 0, 0, 1, 1));
}

TEST(PromptEncoder, MessagesWithoutATemplateAreAConfigError) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  try {
    PromptEncoder(tokenizer, nullptr).encode(std::vector<Message>{{"user", "a"}});
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), HasSubstr("needs a chat template"));
    EXPECT_THAT(error.what(), HasSubstr("\"prompt\""));
  }
}

TEST(PromptEncoder, MessagesThatDoNotEndWithAnAnswerCannotBeLearned) {
  const Tokenizer tokenizer = Tokenizer::bytes();
  const auto chat = ChatTemplate::recognise(kChatMl, "x");
  EXPECT_THROW(PromptEncoder(tokenizer, &chat).encode_example(std::vector<Message>{{"user", "a"}}), FormatError);
}

}  // namespace
}  // namespace temper
