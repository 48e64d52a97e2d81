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

}  // namespace
}  // namespace temper
