#include "data/preference_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <sstream>

#include "core/error.h"
#include "core/files.h"
#include "tests/data/chat_ml.h"
#include "tests/data/scratch_directory.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

class Preferences : public testing::Test {
 protected:
  PreferenceDataset load(const std::string& content, const DatasetOptions& options = {}, int64_t max_length = 0) {
    return PreferenceDataset::load(scratch_.write("pairs.jsonl", content), options, raw_, max_length);
  }
  PreferenceDataset load_chat(const std::string& content, const DatasetOptions& options = {}) {
    return PreferenceDataset::load(scratch_.write("pairs.jsonl", content), options, chat_);
  }
  template <class Kind>
  std::string error_of(const std::string& content, bool chat = false) {
    try {
      chat ? load_chat(content) : load(content);
    } catch (const Kind& error) {
      return error.what();
    }
    ADD_FAILURE() << "loaded " << content;
    return "";
  }
  std::string prompt_of(const SftExample& example) const {
    return bytes_.decode(std::span(example.token_ids).first(static_cast<size_t>(example.prompt_length)), false);
  }
  std::string completion_of(const SftExample& example) const {
    return bytes_.decode(std::span(example.token_ids).subspan(static_cast<size_t>(example.prompt_length)), false);
  }
  void expect_pair(const PreferenceExample& pair, const std::string& prompt, const std::string& chosen,
                   const std::string& rejected) const {
    EXPECT_EQ(prompt_of(pair.chosen), prompt);
    EXPECT_EQ(prompt_of(pair.rejected), prompt);
    EXPECT_EQ(completion_of(pair.chosen), chosen);
    EXPECT_EQ(completion_of(pair.rejected), rejected);
  }

  ScratchDirectory scratch_;
  Tokenizer bytes_ = Tokenizer::bytes();
  ChatTemplate chatml_ = ChatTemplate::recognise(kChatMl, "test");
  PromptEncoder raw_{bytes_, nullptr}, chat_{bytes_, &chatml_};
};

TEST_F(Preferences, TextsBecomeTwoExamplesOfOnePrompt) {
  const PreferenceDataset dataset = load(
      "{\"prompt\": \"1+1=\", \"chosen\": \"2\", \"rejected\": \"11\", \"margin\": 0.5, \"source\": \"me\"}\n"
      "{\"prompt\": \"2+2=\", \"chosen\": \"4\", \"rejected\": \"5\", \"margin\": null}\n");
  ASSERT_EQ(dataset.size(), 2);
  const PreferenceExample& pair = dataset.at(0);
  EXPECT_THAT(pair.chosen.token_ids, ElementsAre('1', '+', '1', '=', '2', 256));
  EXPECT_THAT(pair.chosen.loss_mask, ElementsAre(0, 0, 0, 0, 1, 1));
  EXPECT_THAT(pair.rejected.token_ids, ElementsAre('1', '+', '1', '=', '1', '1', 256));
  EXPECT_EQ(pair.chosen.prompt_length, 4);
  EXPECT_EQ(pair.rejected.prompt_length, 4);
  EXPECT_EQ(pair.margin, 0.5);
  EXPECT_EQ(dataset.at(1).margin, 0);
  EXPECT_EQ(dataset.at(1).line, 1);
  EXPECT_EQ(dataset.at(1).rejected.line, 1);
  EXPECT_THAT(dataset.prompt_texts(), ElementsAre("1+1=", "2+2="));
  EXPECT_EQ(dataset.hash().size(), 32u);
}

TEST_F(Preferences, TextsGoThroughTheChatTemplate) {
  const PreferenceDataset dataset = load_chat("{\"prompt\": \"q\", \"chosen\": \"a\", \"rejected\": \"b\"}\n");
  expect_pair(dataset.at(0), "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>", "b<|im_end|>");
}

TEST_F(Preferences, ThePromptsFieldAndTemplateAreThoseOfTheOptions) {
  DatasetOptions options;
  options.prompt_field = "question";
  options.prompt_template = "Q: {question} A:";
  const PreferenceDataset dataset =
      load("{\"question\": \"why?\", \"chosen\": \" so\", \"rejected\": \" no\"}\n", options);
  expect_pair(dataset.at(0), "Q: why? A:", " so<|endoftext|>", " no<|endoftext|>");
  EXPECT_EQ(dataset.prompt_texts()[0], "why?");
}

constexpr const char* kUser = "{\"role\": \"user\", \"content\": \"q\"}";
std::string says(const std::string& text) { return "{\"role\": \"assistant\", \"content\": \"" + text + "\"}"; }

// The forms in which conversations are written: the same pair each time.
TEST_F(Preferences, ConversationsBeginWithThePromptOrHaveItApart) {
  const std::string user = kUser, a = says("a"), b = says("b");
  const std::string apart = "{\"prompt\": [" + user + "], \"chosen\": [" + a + "], \"rejected\": [" + b + "]}\n";
  const std::string text = "{\"prompt\": \"q\", \"chosen\": [" + a + "], \"rejected\": [" + b + "]}\n";
  const std::string answers = "{\"prompt\": [" + user + "], \"chosen\": \"a\", \"rejected\": \"b\"}\n";
  const std::string implicit = "{\"chosen\": [" + user + ", " + a + "], \"rejected\": [" + user + ", " + b + "]}\n";
  const std::string twice = "{\"prompt\": \"q\", " + implicit.substr(1);
  const std::string twice_listed = "{\"prompt\": [" + user + "], " + implicit.substr(1);
  const PreferenceDataset dataset = load_chat(apart + text + answers + implicit + twice + twice_listed);
  ASSERT_EQ(dataset.size(), 6);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    expect_pair(dataset.at(i), "<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\n", "a<|im_end|>", "b<|im_end|>");
    EXPECT_EQ(dataset.prompt_texts()[static_cast<size_t>(i)], "q");
  }
}

TEST_F(Preferences, ALongerSharedBeginningIsThePrompt) {
  const std::string begin = "{\"role\": \"system\", \"content\": \"s\"}, " + std::string(kUser) + ", " + says("x") +
                            ", {\"role\": \"user\", \"content\": \"r\"}, ";
  const PreferenceDataset dataset =
      load_chat("{\"chosen\": [" + begin + says("a") + "], \"rejected\": [" + begin + says("b") + "]}\n");
  expect_pair(dataset.at(0),
              "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nq<|im_end|>\n<|im_start|>assistant\nx<|im_end|>\n"
              "<|im_start|>user\nr<|im_end|>\n<|im_start|>assistant\n",
              "a<|im_end|>", "b<|im_end|>");
  EXPECT_EQ(dataset.prompt_texts()[0], "r");
}

TEST_F(Preferences, TextsWithoutAPromptPartAfterTheLastWordTheyShare) {
  const PreferenceDataset dataset = load(
      "{\"chosen\": \"Human: hi\\nAssistant: They are\", \"rejected\": \"Human: hi\\nAssistant: The end\"}\n"
      "{\"chosen\": \"Q\\nyes\", \"rejected\": \"Q\\nno\"}\n");
  expect_pair(dataset.at(0), "Human: hi\nAssistant:", " They are<|endoftext|>", " The end<|endoftext|>");
  expect_pair(dataset.at(1), "Q\n", "yes<|endoftext|>", "no<|endoftext|>");
  EXPECT_EQ(dataset.prompt_texts()[1], "Q\n");
}

TEST_F(Preferences, BadLinesAreNamedWithTheFieldAndTheFix) {
  const std::string good = "{\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
  const auto error = [&](const std::string& fields) { return error_of<FormatError>(good + "{" + fields + "}\n"); };
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\""),
              AllOf(HasSubstr("pairs.jsonl:2: has no 'rejected'"), HasSubstr("chosen, prompt"),
                    HasSubstr("A line is such as {\"prompt\"")));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": null, \"rejected\": \"b\""), HasSubstr("has no 'chosen'"));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"a\""),
              AllOf(HasSubstr("pairs.jsonl:2: 'chosen' and 'rejected' are the same"), HasSubstr("Remove the line")));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"margin\": \"inf\""),
              AllOf(HasSubstr("'margin' must be a finite number; found \"inf\""), HasSubstr("leave it out")));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"margin\": 1e999"),
              HasSubstr("pairs.jsonl:2: is not valid JSON"));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \"b\", \"margin\": NaN"),
              HasSubstr("pairs.jsonl:2: is not valid JSON"));
  EXPECT_THAT(error("\"chosen\": \"a\", \"rejected\": \"b\""),
              AllOf(HasSubstr("do not begin with the same"), HasSubstr("Give the prompt apart: {\"prompt\"")));
  EXPECT_THAT(error("\"chosen\": \"yes\", \"rejected\": \"yellow\""), HasSubstr("do not begin with the same"));
  EXPECT_THAT(error("\"chosen\": \"a b\", \"rejected\": \"a b c\""),
              AllOf(HasSubstr("the completion of 'chosen' is empty"), HasSubstr("Give a text")));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": \" \\n\""),
              HasSubstr("the completion of 'rejected' is empty"));
  EXPECT_THAT(error("\"prompt\": \"p\", \"chosen\": \"a\", \"rejected\": [" + says("b") + "]"),
              HasSubstr("must be two texts, or two lists of messages"));
  EXPECT_THAT(error("\"prompt_token_ids\": [1], \"chosen\": \"a\", \"rejected\": \"b\""),
              HasSubstr("prompt_token_ids cannot be learned from"));
  EXPECT_THAT(error("\"prompt\": \"\", \"chosen\": \"a\", \"rejected\": \"b\""), HasSubstr("'prompt' is empty"));
}

TEST_F(Preferences, BadConversationsAreNamedWithTheFieldAndTheFix) {
  const std::string user = kUser;
  const auto error = [&](const std::string& chosen, const std::string& rejected) {
    return error_of<FormatError>("{\"chosen\": [" + chosen + "], \"rejected\": [" + rejected + "]}\n", true);
  };
  EXPECT_THAT(error(user + ", " + says("a"), user + ", " + says("a")), HasSubstr("pairs.jsonl:1: 'chosen' and 'rej"));
  EXPECT_THAT(error(says("a"), says("b")), HasSubstr("do not begin with the same"));
  EXPECT_THAT(error(user, user + ", " + says("b")),
              AllOf(HasSubstr("the completion of 'chosen' is empty"), HasSubstr("Give an answer")));
  EXPECT_THAT(error(user + ", " + says("a"), user + ", " + says("")),
              HasSubstr("the completion of 'rejected' is empty"));
  EXPECT_THAT(error(user + ", " + says("a") + ", " + user + ", " + says("c"), user + ", " + says("b")),
              AllOf(HasSubstr("'chosen' must end with one message of the assistant"), HasSubstr("it has 3"),
                    HasSubstr("Cut the conversations")));
  EXPECT_THAT(error(user + ", " + user, user + ", " + says("b")), HasSubstr("the first by 'user'"));
  EXPECT_THAT(error("", says("b")), HasSubstr("'chosen' is an empty list"));
  EXPECT_THAT(error_of<ConfigError>("{\"prompt\": [" + user + "], \"chosen\": \"a\", \"rejected\": \"b\"}\n"),
              AllOf(HasSubstr("pairs.jsonl:1: "), HasSubstr("needs a chat template")));
}

TEST_F(Preferences, PromptChosenAndRejectedTogetherMustFit) {
  DatasetOptions options;
  options.max_prompt_length = 4;
  // Each completion has one token more, its end.
  const std::string fits = "{\"prompt\": \"p\", \"chosen\": \"abc\", \"rejected\": \"de\"}\n";
  const std::string too_long = "{\"prompt\": \"p\", \"chosen\": \"abc\", \"rejected\": \"def\"}\n";
  const std::string long_prompt = "{\"prompt\": \"ppppp\", \"chosen\": \"a\", \"rejected\": \"b\"}\n";
  const PreferenceDataset dataset = load(too_long + long_prompt + fits, options, 8);
  ASSERT_EQ(dataset.size(), 1);
  EXPECT_EQ(dataset.at(0).line, 2);
  EXPECT_EQ(dataset.num_skipped(), 2);
  EXPECT_THAT(dataset.prompt_texts(), ElementsAre("p"));
  EXPECT_EQ(load(too_long).num_skipped(), 0);
}

TEST_F(Preferences, AGeneratedTaskGivesPairs) {
  TaskOptions options;
  options.num_worked = 40;
  const Task task = Task::make("arithmetic", options);
  const auto pairs = task.preference_pairs();
  const PreferenceDataset dataset = PreferenceDataset::of_pairs(task.name(), pairs, raw_);
  ASSERT_EQ(dataset.size(), 40);
  for (int64_t i = 0; i < dataset.size(); ++i) {
    const PreferencePair& pair = pairs[static_cast<size_t>(i)];
    EXPECT_EQ(dataset.at(i).line, i);
    expect_pair(dataset.at(i), pair.prompt, pair.chosen + "<|endoftext|>", pair.rejected + "<|endoftext|>");
  }
  auto other = pairs;
  other.back().rejected += "0";
  EXPECT_NE(PreferenceDataset::of_pairs(task.name(), other, raw_).hash(), dataset.hash());
  EXPECT_EQ(PreferenceDataset::of_pairs(task.name(), pairs, raw_).hash(), dataset.hash());
}

// Every line that docs/data_formats.md shows, by the word after ```jsonl.
std::map<std::string, std::string> documented_lines() {
  std::istringstream page(read_file(std::string(TEMPER_TEST_DATA) + "/../../../docs/data_formats.md"));
  std::map<std::string, std::string> blocks;
  std::string kind;
  for (std::string line; std::getline(page, line);) {
    if (line.starts_with("```"))
      kind = line.starts_with("```jsonl ") ? line.substr(9) : "";
    else if (!kind.empty())
      blocks[kind] += line + "\n";
  }
  return blocks;
}

TEST_F(Preferences, TheLinesOfTheDocumentationLoad) {
  auto blocks = documented_lines();
  ASSERT_EQ(blocks.size(), 3u);
  const PreferenceDataset pairs = load_chat(blocks["pairs"]);
  EXPECT_EQ(pairs.size(), 5);
  EXPECT_EQ(completion_of(pairs.at(0).rejected), "15<|im_end|>");
  EXPECT_EQ(completion_of(pairs.at(4).chosen), " 14<|im_end|>");
  const PromptDataset prompts = PromptDataset::load(scratch_.write("p.jsonl", blocks["prompts"]), {}, chat_);
  ASSERT_EQ(prompts.size(), 4);
  for (const Prompt& prompt : prompts.prompts()) EXPECT_EQ(prompt.answer, "14");
  const SftDataset examples = SftDataset::load(scratch_.write("s.jsonl", blocks["sft"]), {}, chat_);
  ASSERT_EQ(examples.size(), 5);
  for (int64_t i = 0; i < 3; ++i) EXPECT_EQ(completion_of(examples.at(i)), "14<|im_end|>");
}

}  // namespace
}  // namespace temper
