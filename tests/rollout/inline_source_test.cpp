#include "rollout/inline_source.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <future>
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

using Outcomes = std::vector<RewardOutcome>;

// Answers with the prompt's serial at once, or when it is told to.
class SerialReward final : public Reward {
 public:
  explicit SerialReward(std::shared_future<void> gate = {}) : gate_(std::move(gate)) {}
  const std::string& name() const override { return name_; }
  std::future<Outcomes> score(std::shared_ptr<const RolloutGroup> group, Deadline) override {
    Outcomes outcomes(group->completions.size(), {static_cast<double>(group->prompt.serial), ""});
    if (gate_.valid())
      return std::async(std::launch::async, [gate = gate_, outcomes] {
        gate.wait();
        return outcomes;
      });
    std::promise<Outcomes> answer;
    answer.set_value(std::move(outcomes));
    return answer.get_future();
  }

 private:
  std::string name_ = "serial";
  std::shared_future<void> gate_;
};

std::vector<std::unique_ptr<Reward>> one(std::unique_ptr<Reward> reward) {
  std::vector<std::unique_ptr<Reward>> rewards;
  rewards.push_back(std::move(reward));
  return rewards;
}

TEST(InlineRolloutSource, ReturnsEveryGroupScoredWithItsPrompt) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {.max_num_seqs = 6});
  const auto rewards = one(std::make_unique<SerialReward>());
  InlineRolloutSource source(engine, rewards);
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
  const std::vector<std::unique_ptr<Reward>> none;
  InlineRolloutSource source(engine, none);
  source.request({make_prompt(1)}, 2, {.max_new_tokens = 10, .ignore_eos = true});
  EXPECT_FALSE(source.next_group(Clock::now()).has_value());
  EXPECT_TRUE(source.next_group(Clock::now() + std::chrono::minutes(1)).has_value());
}

TEST(InlineRolloutSource, GeneratesWhileAnotherProgramScores) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  std::promise<void> gate;
  const auto rewards = one(std::make_unique<SerialReward>(gate.get_future().share()));
  InlineRolloutSource source(engine, rewards);
  source.request({make_prompt(1)}, 2, {.max_new_tokens = 3, .ignore_eos = true});
  source.request({make_prompt(2)}, 2, {.max_new_tokens = 40, .ignore_eos = true});
  // The first group is complete and waits for its reward; the second one goes on.
  while (engine.stats().num_completion_tokens < 2 * 3 + 2 * 20)
    EXPECT_FALSE(source.next_group(Clock::now() + std::chrono::microseconds(1)).has_value());
  gate.set_value();
  const auto soon = Clock::now() + std::chrono::minutes(1);
  for (const int64_t serial : {1, 2}) {
    const auto group = source.next_group(soon);
    ASSERT_TRUE(group);
    EXPECT_EQ(group->prompt.serial, serial);
    EXPECT_THAT(group->completions[1].rewards, testing::ElementsAre(static_cast<double>(serial)));
  }
}

TEST(InlineRolloutSource, GivesEachCompletionAnEnvironmentOfItsOwn) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  const std::vector<std::unique_ptr<Reward>> none;
  InlineRolloutSource source(engine, none, {.environment = RolloutEnvironment::kCalculator});
  source.request({make_prompt(1)}, 2, {.max_new_tokens = 10, .ignore_eos = true});
  const auto group = source.next_group(Clock::now() + std::chrono::minutes(1));
  ASSERT_TRUE(group);  // random bytes call no calculator
  for (const Completion& completion : group->completions) EXPECT_THAT(completion.mask, testing::Each(1));
}

}  // namespace
}  // namespace temper
