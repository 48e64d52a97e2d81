// Rewards that ask other programs: command and code.
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <unistd.h>

#include <cmath>
#include <cstdlib>

#include "core/error.h"
#include "rollout/reward_pool.h"

namespace temper {
namespace {

using testing::ElementsAre;
using testing::HasSubstr;

RolloutGroup group_of(std::vector<std::string> texts, std::map<std::string, std::string> fields = {}) {
  RolloutGroup group;
  group.prompt.text = "a prompt";
  group.prompt.answer = "42";
  group.prompt.line = 6;
  group.prompt.fields = std::move(fields);
  for (std::string& text : texts) {
    Completion completion;
    completion.text = std::move(text);
    group.completions.push_back(std::move(completion));
  }
  return group;
}

RewardSection command_section(const std::string& command) {
  RewardSection section;
  section.functions = {"command"};
  section.command = command;
  return section;
}

std::vector<double> values_of(const RolloutGroup& group) {
  std::vector<double> values;
  for (const Completion& completion : group.completions) {
    EXPECT_EQ(completion.error, "");
    values.push_back(completion.rewards.at(0));
  }
  return values;
}

constexpr const char* kLengths = R"(python3 -c '
import json, sys
for line in sys.stdin:
    asked = json.loads(line)
    assert asked["prompt"] == "a prompt" and asked["answer"] == "42" and asked["fields"] == {"level": 3}
    print(json.dumps({"reward": len(asked["completion"])}), flush=True)
')";

TEST(CommandReward, IsWhatTheProgramPrints) {
  for (const int64_t processes : {1, 3}) {
    RewardSection section = command_section(kLengths);
    section.processes = processes;
    const auto rewards = make_rewards(section, nullptr);
    for (int round = 0; round < 3; ++round) {
      RolloutGroup group = group_of({"a", "", "four", "né\n\"\\"}, {{"level", "3"}});
      score_group(rewards, group);
      EXPECT_THAT(values_of(group), ElementsAre(1, 0, 4, 5));
    }
  }
}

TEST(CommandReward, APlainNumberWillDoAndBrokenTextTravels) {
  RolloutGroup group = group_of({"\xff\xfe"});
  score_group(make_rewards(command_section("while read -r line; do echo 0.25; done"), nullptr), group);
  EXPECT_THAT(values_of(group), ElementsAre(0.25));
}

TEST(CommandReward, FailuresAreErrorsOfTheirCompletionAlone) {
  const auto rewards = make_rewards(command_section(R"(while read -r line; do
    case "$line" in *hang*) sleep 1000;; *die*) exit 7;; *nonsense*) echo maybe;; *refuse*) echo '{"error": "no tests"}';;
    *) echo 1;; esac; done)"),
                                    nullptr);
  RolloutGroup group = group_of({"good", "die", "good", "nonsense", "refuse", "good", "hang"});
  score_group(rewards, group, 2);
  EXPECT_THAT(group.completions[0].rewards, ElementsAre(1));
  EXPECT_THAT(group.completions[2].rewards, ElementsAre(1));
  EXPECT_THAT(group.completions[5].rewards, ElementsAre(1));
  EXPECT_EQ(group.completions[1].error, "reward command: reward.command ended with exit code 7 before it answered");
  EXPECT_THAT(group.completions[3].error, HasSubstr("answered 'maybe'. It must print a number"));
  EXPECT_EQ(group.completions[4].error, "reward command: no tests");
  EXPECT_THAT(group.completions[6].error, HasSubstr("gave no answer before the deadline"));
  EXPECT_TRUE(std::isnan(group.completions[6].rewards[0]));
  RolloutGroup next = group_of({"good"});
  score_group(rewards, next, 60);
  EXPECT_THAT(values_of(next), ElementsAre(1));
}

TEST(CommandReward, NobodyWaitsForWhatIsScoredWhenThePoolGoes) {
  RewardSection section = command_section("sleep 10000");
  section.processes = 1;
  RewardPool pool(make_rewards(section, nullptr), /*timeout_s=*/10000);
  pool.submit(group_of({"a", "b"}));
  pool.submit(group_of({"c"}));
  EXPECT_FALSE(pool.next(std::chrono::steady_clock::now() + std::chrono::milliseconds(50)));
}

TEST(CommandReward, SaysWhatIsWrongWithTheCommand) {
  RolloutGroup group = group_of({"a"});
  score_group(make_rewards(command_section("no-such-program-here 2>/dev/null"), nullptr), group);
  EXPECT_EQ(group.completions[0].error,
            "reward command: reward.command ended with exit code 127 before it answered: is the program there, and may "
            "it be executed?");
  EXPECT_THROW(make_rewards(command_section(""), nullptr), ConfigError);
}

// Programs run in namespaces of their own, which some containers do not allow at all.
class CodeRewardTest : public testing::Test {
 protected:
  void SetUp() override {
    const bool allowed = std::system(geteuid() == 0 ? "unshare --mount --pid --fork true 2>/dev/null"
                                                    : "unshare --user --mount --pid --fork true 2>/dev/null") == 0;
    if (!allowed) GTEST_SKIP() << "not run: this machine allows no namespaces";
  }

  static RewardSection section() {
    RewardSection section;
    section.functions = {"code"};
    section.processes = 2;
    section.code.timeout_s = 2;
    return section;
  }
  static RolloutGroup scored(std::vector<std::string> texts, const std::string& tests) {
    RolloutGroup group = group_of(std::move(texts), {{"tests", tests}});
    score_group(make_rewards(section(), nullptr), group, 60);
    return group;
  }
};

TEST_F(CodeRewardTest, RunsTheLastBlockAgainstItsTests) {
  const RolloutGroup group = scored(
      {"Like this:\n```python\ndef add(a, b):\n    return a - b\n```\nno, so:\n```python\ndef add(a, b):\n    return a "
       "+ b\n```\n",
       "def add(a, b): return a + b", "def add(a, b): return 5", "def add(a, b:", "```\ndef add(a, b): return a + b"},
      R"(["assert add(2, 3) == 5", "assert add(-1, 1) == 0"])");
  EXPECT_THAT(values_of(group), ElementsAre(1, 1, 0.5, 0, 1));
}

TEST_F(CodeRewardTest, ComparesWhatIsPrinted) {
  const RolloutGroup group =
      scored({"print(int(input()) * 2)", "print(int(input()) * 2, ' ')\nprint()", "print(4)", ""},
             R"([{"input": "2\n", "output": "4"}, {"input": "5", "output": "10\n"}])");
  EXPECT_THAT(values_of(group), ElementsAre(1, 1, 0.5, 0));
}

TEST_F(CodeRewardTest, ProgramsStayInTheirBounds) {
  const RolloutGroup group =
      scored({"while True: pass", "x = bytearray(1 << 33)", "print('x' * (1 << 22))", "import sys; sys.exit(0)",
              "import socket; socket.create_connection(('1.1.1.1', 53), 1)", "open('/usr/here', 'w')",
              "import os; os.fork() and 0",
              "import os\nn = 0\ntry:\n  while True:\n    if os.fork() == 0:\n      import time; time.sleep(9)\n    n "
              "+= 1\nexcept "
              "OSError: assert n < 40",
              "import os; assert not os.path.exists('/home') and not os.path.exists('/etc')",
              "open('/tmp/mine', 'w').write('x')"},
             R"("pass")");
  EXPECT_THAT(values_of(group), ElementsAre(0, 0, 0, 0, 0, 0, 1, 1, 1, 1));
}

TEST_F(CodeRewardTest, MissingTestsAreAnErrorNotAZero) {
  EXPECT_THAT(scored({"pass"}, "[]").completions[0].error, HasSubstr("the field 'tests' on line 7 must be a text"));
  EXPECT_THAT(scored({"pass"}, R"([{"input": 3}])").completions[0].error, HasSubstr("must be a text"));
  RolloutGroup group = group_of({"pass"});
  score_group(make_rewards(section(), nullptr), group, 60);
  EXPECT_THAT(group.completions[0].error, HasSubstr("has no field 'tests'"));
}

TEST_F(CodeRewardTest, WithoutASandboxNothingRuns) {
  const std::string path = std::getenv("PATH");
  setenv("PATH", "/nowhere", 1);
  EXPECT_THROW(
      {
        try {
          make_rewards(section(), nullptr);
        } catch (const ConfigError& error) {
          EXPECT_THAT(error.what(), HasSubstr("bwrap cannot be started: No such file or directory"));
          throw;
        }
      },
      ConfigError);
  setenv("PATH", path.c_str(), 1);
}

}  // namespace
}  // namespace temper
