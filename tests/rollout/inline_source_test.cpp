#include "rollout/inline_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

Prompt make_prompt(int64_t serial) {
  Prompt prompt;
  prompt.serial = serial;
  prompt.line = serial * 10;
  prompt.token_ids = random_prompt(static_cast<uint64_t>(serial), 6 + serial);
  prompt.answer = format("answer {}", serial);
  return prompt;
}

TEST(InlineRolloutSource, ReturnsEveryGroupScoredWithItsPrompt) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {.max_num_seqs = 6});
  InlineRolloutSource source(engine, [](RolloutGroup& group) {
    for (Completion& completion : group.completions) completion.rewards = {static_cast<double>(group.prompt.serial)};
  });
  const auto soon = Clock::now() + std::chrono::minutes(1);
  EXPECT_FALSE(source.next_group(soon).has_value());

  const SamplingParams sampling{.max_new_tokens = 10, .ignore_eos = true, .seed = 4};
  source.request({make_prompt(1), make_prompt(2), make_prompt(3)}, 4, sampling);
  source.request({make_prompt(4)}, 1, {.temperature = 0, .max_new_tokens = 3, .ignore_eos = true},
                 RolloutPurpose::kEval);
  std::set<int64_t> serials;
  while (const auto group = source.next_group(soon)) {
    serials.insert(group->prompt.serial);
    EXPECT_EQ(group->prompt.line, group->prompt.serial * 10);
    EXPECT_EQ(group->prompt.answer, format("answer {}", group->prompt.serial));
    ASSERT_EQ(group->completions.size(), group->prompt.serial == 4 ? 1u : 4u);
    for (const Completion& completion : group->completions) {
      EXPECT_EQ(completion.token_ids.size(), group->prompt.serial == 4 ? 3u : 10u);
      EXPECT_THAT(completion.rewards, testing::ElementsAre(static_cast<double>(group->prompt.serial)));
      EXPECT_EQ(completion.text, tiny.tokenizer.decode(completion.token_ids));
    }
  }
  EXPECT_THAT(serials, testing::ElementsAre(1, 2, 3, 4));
  EXPECT_TRUE(engine.idle());
  EXPECT_EQ(engine.stats().num_used_blocks, 0);
}

TEST(InlineRolloutSource, KeepsWhatIsNotReadyAtTheDeadline) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  InlineRolloutSource source(engine, [](RolloutGroup&) {});
  source.request({make_prompt(1)}, 2, {.max_new_tokens = 10, .ignore_eos = true});
  EXPECT_FALSE(source.next_group(Clock::now()).has_value());
  EXPECT_TRUE(source.next_group(Clock::now() + std::chrono::minutes(1)).has_value());
}

}  // namespace
}  // namespace temper
