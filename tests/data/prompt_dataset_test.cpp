#include "data/prompt_dataset.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "data/held_out.h"
#include "data/overlap.h"
#include "tests/data/chat_ml.h"
#include "tests/data/scratch_directory.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::Pair;
using Ids = std::vector<int32_t>;

class Dataset : public testing::Test {
 protected:
  PromptDataset load(const std::string& content, const DatasetOptions& options = {}) {
    return PromptDataset::load(scratch_.write("prompts.jsonl", content), options, raw_);
  }
  SftDataset load_sft(const std::string& content, const DatasetOptions& options = {}, int64_t max_length = 0) {
    return SftDataset::load(scratch_.write("sft.jsonl", content), options, raw_, max_length);
  }
  template <class Kind>
  std::string error_of(const std::string& content, const DatasetOptions& options = {}) {
    try {
      load(content, options);
    } catch (const Kind& error) {
      return error.what();
    }
    ADD_FAILURE() << "loaded " << content;
    return "";
  }
  std::string text_of(std::span<const int32_t> ids) const { return bytes_.decode(ids, false); }

  ScratchDirectory scratch_;
  Tokenizer bytes_ = Tokenizer::bytes();
  ChatTemplate chatml_ = ChatTemplate::recognise(kChatMl, "test");
  PromptEncoder raw_{bytes_, nullptr}, chat_{bytes_, &chatml_};
};

TEST_F(Dataset, LinesBecomePromptsWithAnswerAndFields) {
  const PromptDataset dataset = load(
      "{\"prompt\": \"1+1=\", \"answer\": \"2\", \"level\": 3, \"tags\": [\"easy\"]}\n{\"prompt\": \"2+2=\", "
      "\"answer\": 4}\n");
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(dataset.name(), "prompts");
  EXPECT_THAT(dataset.at(0).token_ids, ElementsAre('1', '+', '1', '='));
  EXPECT_EQ(dataset.at(0).text, "1+1=");
  EXPECT_EQ(dataset.at(0).answer, "2");
  EXPECT_THAT(dataset.at(0).fields, ElementsAre(Pair("level", "3"), Pair("tags", "[\"easy\"]")));
  EXPECT_EQ(dataset.at(1).answer, "4");
  EXPECT_EQ(dataset.at(1).line, 1);
}

TEST_F(Dataset, ByteOrderMarkCrLfAndAMissingLastNewlineAreTolerated) {
  const PromptDataset dataset = load("\xEF\xBB\xBF{\"prompt\": \"a\"}\r\n{\"prompt\": \"b\"}");
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_EQ(dataset.at(0).text, "a");
  EXPECT_EQ(dataset.at(1).text, "b");
}

TEST_F(Dataset, GeneratedTokenIdsAndMessagesArePromptsToo) {
  const std::string path = scratch_.write(
      "mixed.jsonl",
      "{\"prompt_token_ids\": [104, 105]}\n"
      "{\"messages\": [{\"role\": \"system\", \"content\": \"s\"}, {\"role\": \"user\", \"content\": \"u\"}]}\n"
      "{\"prompt\": [{\"role\": \"user\", \"content\": \"v\"}]}\n");
  const PromptDataset dataset = PromptDataset::load(path, {}, chat_);
  EXPECT_THAT(dataset.at(0).token_ids, ElementsAre(104, 105));
  EXPECT_EQ(dataset.at(0).text, "hi");
  EXPECT_EQ(text_of(dataset.at(1).token_ids),
            "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n");
  EXPECT_EQ(dataset.at(1).text, "u");
  EXPECT_EQ(text_of(dataset.at(2).token_ids), "<|im_start|>user\nv<|im_end|>\n<|im_start|>assistant\n");
}

TEST_F(Dataset, TheTextAfterFourHashesIsTheAnswerThatCounts) {
  const std::string line = "{\"question\": \"q\", \"answer\": \"48/2 = 24.\\n#### 72 \"}\n";
  DatasetOptions options;
  options.prompt_field = "question";
  EXPECT_EQ(load(line, options).at(0).answer, "72");
  const SftDataset learned = load_sft(line, options);
  EXPECT_EQ(text_of(learned.at(0).token_ids), "q48/2 = 24.\n#### 72 <|endoftext|>");
}

TEST_F(Dataset, TheTemplatesHolesAreFieldsOfTheLine) {
  DatasetOptions options;
  options.prompt_template = "{subject}: {prompt} Put it in \\boxed{}, {{prompt}}, {n}.";
  const PromptDataset dataset = load("{\"prompt\": \"why?\", \"subject\": \"art\", \"n\": 7}\n", options);
  EXPECT_EQ(text_of(dataset.at(0).token_ids), "art: why? Put it in \\boxed{}, {prompt}, 7.");
  EXPECT_EQ(dataset.at(0).text, "why?");
  options.prompt_field = "question";
  EXPECT_THAT(text_of(load("{\"question\": \"why?\", \"subject\": 1, \"n\": 2}\n", options).at(0).token_ids),
              HasSubstr("1: why? "));
}

TEST_F(Dataset, AHoleThatNoFieldFillsIsAConfigErrorThatNamesTheFields) {
  DatasetOptions options;
  options.prompt_template = "{topic} {prompt}";
  EXPECT_THAT(error_of<ConfigError>("{\"prompt\": \"a\", \"subject\": \"b\"}\n", options),
              AllOf(HasSubstr("prompts.jsonl:1: data.prompt_template"), HasSubstr("{topic}"),
                    HasSubstr("prompt, subject"), HasSubstr("{{topic}}")));
}

TEST_F(Dataset, BadLinesAreNamedByTheirNumber) {
  const std::string good = "{\"prompt\": \"a\"}\n";
  EXPECT_THAT(error_of<FormatError>(good + "\n" + good),
              AllOf(HasSubstr("prompts.jsonl:2: the line is empty"), HasSubstr("remove it")));
  EXPECT_THAT(error_of<FormatError>(good + good + "{\"prompt\": \n"),
              AllOf(HasSubstr("prompts.jsonl:3: is not valid JSON")));
  EXPECT_THAT(error_of<FormatError>(good + "{\"prompt\": \"a\", \"level\": 1e999}\n"),
              AllOf(HasSubstr("prompts.jsonl:2: is not valid JSON"), HasSubstr("1e999")));
  EXPECT_THAT(error_of<FormatError>(good + "[1]\n"), HasSubstr("prompts.jsonl:2: is no JSON object"));
  EXPECT_THAT(error_of<FormatError>(good + "{\"prompt\": \"\"}\n"), HasSubstr("prompts.jsonl:2: 'prompt' is empty"));
  EXPECT_THAT(error_of<FormatError>(good + "{\"prompt\": 5}\n"),
              HasSubstr("prompts.jsonl:2: 'prompt' must be a text or a list of messages"));
  EXPECT_THAT(error_of<FormatError>(good + "{\"question\": \"a\", \"id\": 1}\n"),
              AllOf(HasSubstr("prompts.jsonl:2: has none of 'prompt'"), HasSubstr("id, question"),
                    HasSubstr("data.prompt_field")));
  EXPECT_THAT(error_of<FormatError>("{\"prompt_token_ids\": []}\n"),
              HasSubstr("prompts.jsonl:1: prompt_token_ids must be a list"));
  EXPECT_THAT(error_of<FormatError>("{\"prompt_token_ids\": [1, 260]}\n"),
              HasSubstr("prompts.jsonl:1: token id 260 is outside the vocabulary of 260"));
  EXPECT_THAT(error_of<FormatError>("{\"messages\": [{\"role\": \"user\"}]}\n"),
              HasSubstr("prompts.jsonl:1: 'messages' must be a list of {\"role\""));
  EXPECT_THAT(error_of<FormatError>("{\"messages\": []}\n"), HasSubstr("prompts.jsonl:1: 'messages' is an empty list"));
  EXPECT_THAT(error_of<FormatError>(""), HasSubstr("prompts.jsonl: is empty"));
  EXPECT_THAT(error_of<FormatError>(good + "{\"prompt\": \"a\xff\"}\n"),
              HasSubstr("prompts.jsonl:2: is not valid JSON"));
}

TEST_F(Dataset, MessagesWithoutAChatTemplateAreRefusedWithTheLine) {
  EXPECT_THAT(error_of<ConfigError>("{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}]}\n"),
              AllOf(HasSubstr("prompts.jsonl:1: "), HasSubstr("needs a chat template")));
}

TEST_F(Dataset, AMissingFileIsAnIoErrorThatNamesIt) {
  try {
    PromptDataset::load(scratch_.path() + "/none.jsonl", {}, raw_);
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), HasSubstr("none.jsonl"));
  }
}

TEST_F(Dataset, ALongPromptIsAConfigErrorWithLineAndLengths) {
  DatasetOptions options;
  options.max_prompt_length = 3;
  EXPECT_THAT(
      error_of<ConfigError>("{\"prompt\": \"abc\"}\n{\"prompt\": \"abcd\"}\n", options),
      AllOf(HasSubstr("prompts.jsonl:2: "), HasSubstr("4 tokens"), HasSubstr("data.max_prompt_length allows 3")));
}

TEST_F(Dataset, ForTrainingLongPromptsAreLeftOutAndCounted) {
  DatasetOptions options;
  options.max_prompt_length = 3;
  options.skip_long = true;
  const PromptDataset dataset = load("{\"prompt\": \"abcd\"}\n{\"prompt\": \"abc\"}\n", options);
  ASSERT_EQ(dataset.size(), 1);
  EXPECT_EQ(dataset.num_skipped(), 1);
  EXPECT_EQ(dataset.at(0).line, 1);
}

TEST_F(Dataset, TheHashIsOfTheContent) {
  const std::string a = load("{\"prompt\": \"a\"}\n").hash();
  EXPECT_EQ(a.size(), 32u);
  EXPECT_EQ(load("{\"prompt\": \"a\"}\n").hash(), a);
  EXPECT_NE(load("{\"prompt\": \"b\"}\n").hash(), a);
}

TEST_F(Dataset, TheSplitIsByTextAndLosesNothing) {
  std::string content;
  for (int i = 0; i < 2000; ++i) content += "{\"prompt\": \"problem " + std::to_string(i % 1000) + "\"}\n";
  const PromptDataset dataset = load(content);
  const auto [train, held_out] = dataset.split(0.1);
  EXPECT_EQ(train.size() + held_out.size(), 2000);
  EXPECT_NEAR(static_cast<double>(held_out.size()), 200, 60);
  for (const Prompt& prompt : held_out.prompts()) EXPECT_TRUE(is_held_out(prompt.text, 0.1));
  std::vector<std::string> a, b;
  for (const Prompt& prompt : train.prompts()) a.push_back(prompt.text);
  for (const Prompt& prompt : held_out.prompts()) b.push_back(prompt.text);
  EXPECT_EQ(count_overlap(b, a), 0);
}

TEST_F(Dataset, SftLearnsTheCompletionAndTheEnd) {
  const SftDataset dataset = load_sft(
      "{\"prompt\": \"2+2=\", \"completion\": \"4\", \"answer\": \"four\"}\n{\"prompt\": \"1+1=\", \"answer\": "
      "\"2\"}\n");
  ASSERT_EQ(dataset.size(), 2);
  EXPECT_THAT(dataset.at(0).token_ids, ElementsAre('2', '+', '2', '=', '4', 256));
  EXPECT_THAT(dataset.at(0).loss_mask, ElementsAre(0, 0, 0, 0, 1, 1));
  EXPECT_EQ(dataset.at(0).prompt_length, 4);
  EXPECT_EQ(text_of(dataset.at(1).token_ids), "1+1=2<|endoftext|>");
  EXPECT_THAT(dataset.prompt_texts(), ElementsAre("2+2=", "1+1="));
}

TEST_F(Dataset, SftTakesConversations) {
  const std::string path = scratch_.write(
      "chat.jsonl",
      "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}]}\n"
      "{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"completion\": [{\"role\": \"assistant\", "
      "\"content\": \"b\"}]}\n"
      "{\"prompt\": [{\"role\": \"user\", \"content\": \"a\"}], \"completion\": \"b\"}\n{\"prompt\": \"a\", "
      "\"completion\": \"b\"}\n");
  const SftDataset dataset = SftDataset::load(path, {}, chat_);
  for (int64_t i = 0; i < 4; ++i) {
    EXPECT_EQ(text_of(dataset.at(i).token_ids), "<|im_start|>user\na<|im_end|>\n<|im_start|>assistant\nb<|im_end|>");
    EXPECT_EQ(text_of(std::span(dataset.at(i).token_ids).subspan(static_cast<size_t>(dataset.at(i).prompt_length))),
              "b<|im_end|>");
  }
}

TEST_F(Dataset, SftLearnsAPlainTextAsAWhole) {
  const std::string lines = "{\"text\": \"abc\", \"source\": \"book\"}\n{\"text\": \"d<|endoftext|>\"}\n";
  for (const PromptEncoder* encoder : {&raw_, &chat_}) {  // no template: the text is what it is
    const SftDataset dataset = SftDataset::load(scratch_.write("text.jsonl", lines), {}, *encoder);
    ASSERT_EQ(dataset.size(), 2);
    EXPECT_THAT(dataset.at(0).token_ids, ElementsAre('a', 'b', 'c', 256));
    EXPECT_THAT(dataset.at(0).loss_mask, ElementsAre(0, 1, 1, 1));
    EXPECT_EQ(dataset.at(0).prompt_length, 1);
    EXPECT_THAT(dataset.at(1).token_ids, ElementsAre('d', 256));  // not ended twice
    EXPECT_THAT(dataset.prompt_texts(), ElementsAre("abc", "d<|endoftext|>"));
  }
  const auto refusal = [&](const std::string& content) -> std::string {
    try {
      load_sft(content);
    } catch (const FormatError& error) {
      return error.what();
    }
    return "loaded";
  };
  EXPECT_THAT(refusal("{\"text\": \"\"}\n"), AllOf(HasSubstr("sft.jsonl:1: "), HasSubstr("Remove the line")));
  EXPECT_THAT(refusal("{\"text\": 3}\n"), HasSubstr("sft.jsonl:1: 'text' must be a text; found 3"));
  // With a completion it is a prompt under another name.
  EXPECT_THAT(refusal("{\"text\": \"a\", \"completion\": \"b\"}\n"), HasSubstr("data.prompt_field"));
}

TEST_F(Dataset, SftWithoutAnythingToLearnIsAFormatErrorThatNamesTheLine) {
  try {
    load_sft("{\"prompt\": \"a\", \"answer\": \"b\"}\n{\"prompt\": \"a\", \"solution\": \"b\"}\n");
    FAIL();
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("sft.jsonl:2: has neither 'completion' nor 'answer'"),
                                    HasSubstr("solution"), HasSubstr("data.completion_field")));
  }
}

TEST_F(Dataset, SftLeavesOutAndCountsWhatIsTooLong) {
  DatasetOptions options;
  options.max_prompt_length = 4;
  const SftDataset dataset = load_sft(
      "{\"prompt\": \"abcde\", \"completion\": \"f\"}\n{\"prompt\": \"a\", \"completion\": \"bcdefghi\"}\n{\"prompt\": "
      "\"a\", \"completion\": \"b\"}\n",
      options, 8);
  ASSERT_EQ(dataset.size(), 1);
  EXPECT_EQ(dataset.at(0).line, 2);
  EXPECT_EQ(dataset.num_skipped(), 2);
}

TEST(Overlap, CountsEvaluationPromptsThatTrainingHoldsWhateverTheWhiteSpace) {
  EXPECT_EQ(count_overlap({"a  b", "c", "\nd\n", "c"}, {"a b", "c", "x", "d e"}), 3);
  EXPECT_EQ(count_overlap({}, {"a"}), 0);
}

}  // namespace
}  // namespace temper
