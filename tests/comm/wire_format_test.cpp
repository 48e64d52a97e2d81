#include "comm/wire_format.h"

#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/comm/example_completion.h"

namespace temper {
namespace {

TEST(WireFormat, GroupsComeBackAsTheyWere) {
  RolloutGroup group;
  group.prompt = {
      .serial = 7, .line = 3, .token_ids = {1, 2, 3}, .text = "ab\0c", .answer = "é", .fields = {{"k", "[1]"}}};
  group.purpose = RolloutPurpose::kEval;
  group.baseline_reward = 0.5;
  group.margin = -1;
  const Completion completion = example_completion();
  group.completions = {completion, {}};
  WireWriter writer;
  write_group(group, writer);
  write_group({}, writer);
  const std::string bytes = writer.take();
  WireReader reader(bytes);
  const RolloutGroup back = read_group(reader);
  EXPECT_EQ(back.prompt.serial, 7);
  EXPECT_EQ(back.prompt.line, 3);
  EXPECT_EQ(back.prompt.token_ids, group.prompt.token_ids);
  EXPECT_EQ(back.prompt.text, group.prompt.text);
  EXPECT_EQ(back.prompt.answer, "é");
  EXPECT_EQ(back.prompt.fields, group.prompt.fields);
  EXPECT_EQ(back.purpose, RolloutPurpose::kEval);
  EXPECT_EQ(back.baseline_reward, 0.5);
  EXPECT_EQ(back.margin, -1);
  ASSERT_EQ(back.completions.size(), 2U);
  EXPECT_EQ(back.completions[0].token_ids, completion.token_ids);
  EXPECT_EQ(back.completions[0].logprobs, completion.logprobs);
  EXPECT_EQ(back.completions[0].behavior_logprobs, completion.behavior_logprobs);
  EXPECT_EQ(back.completions[0].policy_versions, completion.policy_versions);
  EXPECT_EQ(back.completions[0].mask, completion.mask);
  EXPECT_EQ(back.completions[0].text, "text");
  EXPECT_EQ(back.completions[0].finish_reason, FinishReason::kLength);
  EXPECT_EQ(back.completions[0].rewards, completion.rewards);
  EXPECT_EQ(back.completions[0].error, "why");
  EXPECT_FALSE(read_group(reader).baseline_reward.has_value());
  EXPECT_TRUE(reader.at_end());
  for (size_t size = 0; size < bytes.size() / 2; ++size) {  // cut anywhere: an error, not a crash
    WireReader cut(std::string_view(bytes).substr(0, size));
    EXPECT_THROW(
        {
          read_group(cut);
          read_group(cut);
        },
        FormatError)
        << size;
  }
}

TEST(WireFormat, WhatTokensShareIsWrittenOnce) {
  Completion completion;
  completion.token_ids.assign(1000, 49151);
  completion.logprobs.assign(1000, -0.5F);
  completion.behavior_logprobs = completion.logprobs;
  completion.policy_versions.assign(600, 3);
  completion.policy_versions.resize(1000, 4);
  completion.mask.assign(1000, 1);
  const auto bytes_of = [&] {
    WireWriter writer;
    write_completions({completion}, writer);
    return writer.take();
  };
  const std::string bytes = bytes_of();
  EXPECT_LT(bytes.size(), 1000U * 6 + 200);
  completion.token_ids[17] = 70'000;  // more than 2 bytes hold
  completion.behavior_logprobs[3] = -1;
  const std::string wide = bytes_of();
  EXPECT_GT(wide.size(), 1000U * 12);
  for (const std::string* written : {&bytes, &wide}) {
    WireReader reader(*written);
    const std::vector<Completion> back = read_completions(reader);
    EXPECT_EQ(back[0].token_ids[17], written == &wide ? 70'000 : 49151);
    EXPECT_EQ(back[0].behavior_logprobs[3], written == &wide ? -1 : -0.5F);
    EXPECT_EQ(back[0].policy_versions, completion.policy_versions);
    EXPECT_EQ(back[0].mask, completion.mask);
  }
}

TEST(WireFormat, RunsOfMoreThanThereAreTokensAreRefused) {
  Completion completion;
  completion.token_ids = {1, 2};
  for (const size_t size : {size_t{3}, size_t{1} << 20}) {
    completion.mask.assign(size, 1);
    WireWriter writer;
    write_completions({completion}, writer);
    const std::string bytes = writer.take();
    WireReader reader(bytes);
    EXPECT_THROW(read_completions(reader), FormatError);
  }
}

}  // namespace
}  // namespace temper
