#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <cmath>
#include <functional>

#include "core/error.h"
#include "rollout/reward_pool.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

RolloutGroup group_of(const std::string& answer, std::vector<std::string> texts) {
  RolloutGroup group;
  group.prompt.answer = answer;
  group.prompt.line = 11;
  for (std::string& text : texts) {
    Completion completion;
    completion.text = std::move(text);
    group.completions.push_back(std::move(completion));
  }
  return group;
}

RewardSection section_of(std::vector<std::string> functions) {
  RewardSection section;
  section.functions = std::move(functions);
  return section;
}

// The first function's rewards; the error text where it failed is demanded to be empty.
std::vector<double> scores(const RewardSection& section, RolloutGroup group) {
  score_group(make_rewards(section, nullptr), group);
  std::vector<double> values;
  for (const Completion& completion : group.completions) {
    EXPECT_EQ(completion.error, "");
    values.push_back(completion.rewards.at(0));
  }
  return values;
}

template <class Call>
std::string config_error(Call call) {
  try {
    call();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "nothing thrown";
}

TEST(ExactReward, ComparesAllButTheWhiteSpaceAround) {
  EXPECT_THAT(scores(section_of({"exact"}), group_of("Paris", {"Paris", " Paris\n", "paris", "Paris.", ""})),
              ElementsAre(1, 1, 0, 0, 0));
}

TEST(NumericReward, ComparesTheNumbersThatBothEndIn) {
  EXPECT_THAT(
      scores(section_of({"numeric"}), group_of("2 + 2 = 4\n#### 1,234", {"\\boxed{1234}", "#### 1234.0",
                                                                         "The answer is $1,234.", "1235", "none"})),
      ElementsAre(1, 1, 1, 0, 0));
}

TEST(NumericReward, TakesItsToleranceFromTheConfiguration) {
  RewardSection section = section_of({"numeric"});
  section.numeric.tolerance = 0.01;
  EXPECT_THAT(scores(section, group_of("3.14159", {"3.14", "3.1"})), ElementsAre(1, 0));
}

TEST(RegexReward, IsOneWhereThePatternIsFound) {
  RewardSection section = section_of({"regex"});
  section.regex.pattern = "<think>.+</think>";
  EXPECT_THAT(scores(section, group_of("", {"a <think>x\ny</think> b", "<think></think>", "x"})), ElementsAre(1, 0, 0));
}

TEST(RegexReward, ComparesTheGroupNamedAnswerOfTheLastMatch) {
  RewardSection section = section_of({"regex"});
  section.regex.pattern = "<answer>(?<answer>.*?)</answer>";
  EXPECT_THAT(scores(section, group_of("B", {"<answer>B</answer>", "<answer>B</answer> no: <answer> C </answer>",
                                             "<answer>A</answer><answer> B </answer>", "B"})),
              ElementsAre(1, 0, 1, 0));
}

TEST(RegexReward, PassesEmptyMatchesAndBrokenUtf8) {
  RewardSection section = section_of({"regex"});
  section.regex.pattern = "x*";
  EXPECT_THAT(scores(section, group_of("", {"\xc3\xa4\xe2\x82", "", "axxb"})), ElementsAre(1, 1, 1));
}

TEST(FormatReward, DemandsTheWholeCompletion) {
  RewardSection section = section_of({"format"});
  section.format.pattern = "<think>.*</think>\\s*<answer>.*</answer>";
  EXPECT_THAT(scores(section,
                     group_of("", {"<think>a\nb</think>\n<answer>7</answer>\n", "So <think>a</think><answer>7</answer>",
                                   "<think>a</think><answer>7</answer> done"})),
              ElementsAre(1, 0, 0));
}

TEST(FormatReward, AlternativesAreHeldToTheWholeTextToo) {
  RewardSection section = section_of({"format"});
  section.format.pattern = "a|ab";
  EXPECT_THAT(scores(section, group_of("", {"a", "ab", "abc"})), ElementsAre(1, 1, 0));
}

TEST(LengthReward, FallsInAStraightLineOnBothSidesOfTheTarget) {
  RewardSection section = section_of({"length"});
  section.length.target = 4;
  RolloutGroup group = group_of("", {"", "", "", "", ""});
  const size_t lengths[] = {4, 2, 0, 7, 9};
  for (size_t i = 0; i < 5; ++i) group.completions[i].token_ids.resize(lengths[i]);
  EXPECT_THAT(scores(section, group), ElementsAre(1, 0.5, 0, 0.25, 0));
}

TEST(TaskReward, AsksTheTask) {
  const Task task = Task::make("arithmetic");
  const Problem problem = task.problem(0);
  RolloutGroup group = group_of(problem.answer, {problem.completion, "no idea"});
  score_group(make_rewards(section_of({"task"}), &task), group);
  EXPECT_THAT(group.completions[0].rewards, ElementsAre(1));
  EXPECT_THAT(group.completions[1].rewards, ElementsAre(0));
  EXPECT_TRUE(is_correct(group.completions[0]));
  EXPECT_FALSE(is_correct(group.completions[1]));
}

TEST(Rewards, APatternThatBacktracksWithoutEndFailsTheCompletionInsteadOfHangingTheRun) {
  RewardSection section = section_of({"format", "exact"});
  section.format.pattern = "(a+)+b";
  RolloutGroup group = group_of("aab", {std::string(40, 'a') + "cb", "aab"});
  score_group(make_rewards(section, nullptr), group);
  EXPECT_THAT(group.completions[0].error, HasSubstr("reward format: reward.format.pattern gave up"));
  EXPECT_TRUE(std::isnan(group.completions[0].rewards[0]));
  EXPECT_EQ(group.completions[0].rewards[1], 0);
  EXPECT_FALSE(is_correct(group.completions[0]));
  EXPECT_THAT(group.completions[1].rewards, ElementsAre(1, 1));
  EXPECT_EQ(group.completions[1].error, "");
}

TEST(Rewards, AMissingOrUnusableAnswerFailsTheCompletionAndNamesTheLine) {
  RolloutGroup group = group_of("", {"7"});
  score_group(make_rewards(section_of({"exact"}), nullptr), group);
  EXPECT_THAT(group.completions[0].error, HasSubstr("the prompt on line 12 has no answer"));
  EXPECT_THAT(group.completions[0].error, HasSubstr("[data] answer_field"));
  group = group_of("blue", {"7"});
  score_group(make_rewards(section_of({"numeric"}), nullptr), group);
  EXPECT_THAT(group.completions[0].error, HasSubstr("the answer on line 12 holds no number: 'blue'"));
}

TEST(Rewards, BadSettingsAreConfigErrorsThatNameKeyAndFix) {
  RewardSection section = section_of({"format"});
  section.format.pattern = "(";
  EXPECT_THAT(config_error([&] { make_rewards(section, nullptr); }),
              HasSubstr("reward.format.pattern = '(' is not a regular expression"));
  EXPECT_THAT(config_error([&] { make_rewards(section_of({"regex"}), nullptr); }),
              HasSubstr("reward.regex.pattern is empty. Give"));
  EXPECT_THAT(config_error([&] { make_rewards(section_of({"length"}), nullptr); }),
              HasSubstr("Set [reward.length] target"));
  EXPECT_THAT(config_error([&] { make_rewards(section_of({"task"}), nullptr); }), HasSubstr("Set data.task"));
  EXPECT_THAT(config_error([&] { make_rewards(section_of({"exakt"}), nullptr); }), HasSubstr("none of exact, numeric"));
}

// ---- a group through rewards that misbehave
// -----------------------------------------------------------------------------------

class TestReward : public Reward {
 public:
  using Answer = std::function<std::future<std::vector<RewardOutcome>>(std::shared_ptr<const RolloutGroup>)>;
  explicit TestReward(Answer answer) : answer_(std::move(answer)) {}
  const std::string& name() const override { return name_; }
  std::future<std::vector<RewardOutcome>> score(std::shared_ptr<const RolloutGroup> group, Deadline) override {
    return answer_(group);
  }

 private:
  std::string name_ = "test";
  Answer answer_;
};

std::vector<std::unique_ptr<Reward>> only(TestReward::Answer answer) {
  std::vector<std::unique_ptr<Reward>> rewards;
  rewards.push_back(std::make_unique<TestReward>(std::move(answer)));
  return rewards;
}

std::future<std::vector<RewardOutcome>> ready(std::vector<RewardOutcome> outcomes) {
  std::promise<std::vector<RewardOutcome>> promise;
  promise.set_value(std::move(outcomes));
  return promise.get_future();
}

TEST(Rewards, NaNAndInfinityAreFailuresNotZeros) {
  RolloutGroup group = group_of("", {"a", "b", "c"});
  score_group(only([](auto) { return ready({{std::nan(""), ""}, {INFINITY, ""}, {0.25, ""}}); }), group);
  EXPECT_EQ(group.completions[0].error, "reward test: gave nan, which is not a finite number");
  EXPECT_EQ(group.completions[1].error, "reward test: gave inf, which is not a finite number");
  EXPECT_TRUE(std::isnan(group.completions[1].rewards[0]));
  EXPECT_EQ(group.completions[2].error, "");
  EXPECT_THAT(group.completions[2].rewards, ElementsAre(0.25));
}

TEST(Rewards, AnExceptionFailsTheWholeGroupWithItsReason) {
  RolloutGroup group = group_of("", {"a", "b"});
  score_group(only([](auto) -> std::future<std::vector<RewardOutcome>> { throw IoError("the scorer died"); }), group);
  for (const Completion& completion : group.completions) EXPECT_EQ(completion.error, "reward test: the scorer died");
}

TEST(Rewards, ALateRewardIsLeftBehindAtTheDeadlineAndMayStillReadItsGroup) {
  RolloutGroup group = group_of("", {"a text long enough to live on the heap"});
  std::future<void> late;
  std::promise<void> may_end;
  size_t read = 0;
  score_group(only([&](std::shared_ptr<const RolloutGroup> mine) {
                auto promise = std::make_shared<std::promise<std::vector<RewardOutcome>>>();
                late = std::async(std::launch::async, [mine, promise, gate = may_end.get_future().share(), &read] {
                  gate.wait();
                  read = mine->completions[0].text.size();
                  promise->set_value({{1, ""}});
                });
                return promise->get_future();
              }),
              group, 0.02);
  EXPECT_EQ(group.completions[0].error, "reward test: gave no answer within 0.02 s");
  group.completions.clear();
  may_end.set_value();
  late.get();
  EXPECT_EQ(read, 38u);
}

TEST(RewardPool, ScoresWhatIsSubmittedInOrderAndCountsFailures) {
  RewardPool pool(make_rewards(section_of({"exact", "numeric"}), nullptr));
  EXPECT_THAT(pool.names(), ElementsAre("exact", "numeric"));
  const auto later = std::chrono::steady_clock::now() + std::chrono::seconds(60);
  EXPECT_FALSE(pool.next(later));  // nothing outstanding: returns at once
  for (int64_t serial = 0; serial < 50; ++serial) {
    RolloutGroup group = group_of(serial == 49 ? "" : std::to_string(serial),
                                  {std::to_string(serial), "= " + std::to_string(serial), "x"});
    group.prompt.serial = serial;
    pool.submit(std::move(group));
  }
  for (int64_t serial = 0; serial < 50; ++serial) {
    const auto group = pool.next(later);
    ASSERT_TRUE(group);
    EXPECT_EQ(group->prompt.serial, serial);
    if (serial == 49) {
      EXPECT_NE(group->completions[0].error, "");
      continue;
    }
    EXPECT_THAT(group->completions[0].rewards, ElementsAre(1, 1));
    EXPECT_THAT(group->completions[1].rewards, ElementsAre(0, 1));
    EXPECT_THAT(group->completions[2].rewards, ElementsAre(0, 0));
  }
  EXPECT_EQ(pool.num_outstanding(), 0);
  EXPECT_EQ(pool.num_failed(), 3);
}

TEST(RewardPool, ReturnsNothingAtTheDeadline) {
  auto forever = std::make_shared<std::promise<std::vector<RewardOutcome>>>();
  RewardPool pool(only([forever](auto) { return forever->get_future(); }), 0.2);
  pool.submit(group_of("", {"a"}));
  EXPECT_FALSE(pool.next(std::chrono::steady_clock::now() + std::chrono::milliseconds(5)));
  EXPECT_EQ(pool.num_outstanding(), 1);
  EXPECT_TRUE(pool.next(std::chrono::steady_clock::now() + std::chrono::seconds(60)));
}

TEST(RewardPool, ABugOfOursReachesTheCaller) {
  RewardPool pool(only([](auto) { return ready({}); }));
  pool.submit(group_of("", {"a"}));
  EXPECT_THROW(pool.next(std::chrono::steady_clock::now() + std::chrono::seconds(60)), InvariantError);
}

}  // namespace
}  // namespace temper
