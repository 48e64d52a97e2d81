#include "data/task.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <set>

#include "core/error.h"
#include "core/format.h"
#include "data/held_out.h"
#include "data/prompt_stream.h"
#include "tests/data/scratch_directory.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

std::vector<std::string> operands(const std::vector<Problem>& problems, size_t count) {
  std::vector<std::string> result;
  for (size_t i = 0; i < count; ++i) {
    const std::string& prompt = problems[i].prompt;  // What is A + B? …
    result.push_back(prompt.substr(8, prompt.find('?') - 8));
  }
  return result;
}

TEST(Add1, TheStreamIsThatOfTheReferenceTask) {
  const Task task = Task::make("add1");
  std::vector<Problem> problems;
  for (int64_t i = 0; i < 6; ++i) problems.push_back(task.problem(i));
  EXPECT_THAT(operands(problems, 6), ElementsAre("6 + 8", "4 + 3", "4 + 6", "1 + 4", "1 + 2", "7 + 8"));
  EXPECT_EQ(problems[0].prompt, "What is 6 + 8? Answer with just the number.");
  EXPECT_EQ(problems[0].answer, "14");
  EXPECT_TRUE(task.uses_chat_template());
}

// The first problems of both sets, from the recurrence written out in Python.
TEST(Add1, TheHeldOutSetsHaveTheirSeedsAndRanges) {
  const auto sets = Task::make("add1").eval_sets(5);
  ASSERT_EQ(sets.size(), 2u);
  EXPECT_EQ(sets[0].name, "add1_near");
  ASSERT_EQ(sets[0].problems.size(), 200u);
  EXPECT_THAT(operands(sets[0].problems, 4), ElementsAre("1 + 5", "8 + 5", "6 + 8", "8 + 2"));
  EXPECT_EQ(sets[1].name, "add1_far");
  ASSERT_EQ(sets[1].problems.size(), 100u);
  EXPECT_THAT(operands(sets[1].problems, 4), ElementsAre("18 + 18", "15 + 18", "20 + 12", "13 + 16"));
}

TEST(Add1, HasPairs) {
  TaskOptions options;
  options.num_worked = 50;
  const Task task = Task::make("add1", options);
  const auto pairs = task.preference_pairs();
  ASSERT_EQ(pairs.size(), 50u);
  EXPECT_EQ(pairs[0].chosen, "14");
  for (const PreferencePair& pair : pairs) EXPECT_EQ(task.score(pair.rejected, pair.chosen), 0);
}

TEST(Add1, TheLastRunOfDigitsIsTheAnswer) {
  const Task task = Task::make("add1");
  EXPECT_EQ(task.score("14", "14"), 1);
  EXPECT_EQ(task.score("6 + 8 = 14.", "14"), 1);
  EXPECT_EQ(task.score("14 is 6 + 8", "14"), 0);
  EXPECT_EQ(task.score("-14!", "14"), 1);
  EXPECT_EQ(task.score("014", "14"), 0);
  EXPECT_EQ(task.score("1 4", "14"), 0);
  EXPECT_EQ(task.score("", "14"), 0);
  EXPECT_EQ(task.score("fourteen", "14"), 0);
}

TEST(Arithmetic, ProblemsAreRightAndInRange) {
  TaskOptions options;
  options.max_operand = 20;
  const Task task = Task::make("arithmetic", options);
  EXPECT_FALSE(task.uses_chat_template());
  bool plus = false, minus = false;
  for (int64_t i = 0; i < 300; ++i) {
    const Problem problem = task.problem(i);
    int a = 0, b = 0;
    char sign = 0, equals = 0;
    ASSERT_EQ(std::sscanf(problem.prompt.c_str(), "%d%c%d%c", &a, &sign, &b, &equals), 4) << problem.prompt;
    EXPECT_LE(a, 20);
    EXPECT_LE(b, 20);
    EXPECT_EQ(problem.answer, std::to_string(sign == '+' ? a + b : a - b));
    EXPECT_NE(problem.answer[0], '-');
    plus |= sign == '+', minus |= sign == '-';
  }
  EXPECT_TRUE(plus && minus);
  EXPECT_EQ(task.score(" 40\n", "40"), 1);
  EXPECT_EQ(task.score("400", "40"), 0);
  EXPECT_EQ(task.score("4", "40"), 0);
}

class EveryTask : public testing::TestWithParam<std::string> {};

TEST_P(EveryTask, NoHeldOutProblemIsTrainedOn) {
  const Task task = Task::make(GetParam());
  std::set<std::string> trained, held_out;
  for (int64_t i = 0; i < 3000; ++i) trained.insert(task.problem(i).prompt);
  for (const Problem& problem : task.worked_problems()) trained.insert(problem.prompt);
  for (const ProblemSet& set : task.eval_sets(100)) {
    EXPECT_GE(set.problems.size(), 15u);
    for (const Problem& problem : set.problems) held_out.insert(problem.prompt);
  }
  for (const std::string& prompt : held_out) {
    EXPECT_EQ(trained.count(prompt), 0u) << prompt;
    EXPECT_TRUE(is_held_out(prompt, 0.1));
  }
}

TEST_P(EveryTask, RepeatsItselfAndDependsOnTheSeed) {
  TaskOptions other;
  other.seed = 2;
  const Task a = Task::make(GetParam()), b = Task::make(GetParam()), c = Task::make(GetParam(), other);
  int same = 0;
  for (int64_t i = 99; i >= 0; --i) {
    EXPECT_EQ(a.problem(i).prompt, b.problem(i).prompt);
    same += a.problem(i).prompt == c.problem(i).prompt;
  }
  EXPECT_LT(same, 20);
  EXPECT_EQ(a.hash(), b.hash());
  EXPECT_NE(a.hash(), c.hash());
}

TEST_P(EveryTask, WorkedProblemsScoreOne) {
  const Task task = Task::make(GetParam());
  for (const Problem& problem : task.worked_problems()) {
    ASSERT_EQ(task.score(problem.completion, problem.answer), 1) << problem.prompt;
    ASSERT_EQ(task.score(problem.completion + "0", problem.answer), 0) << problem.prompt;
  }
}

TEST_P(EveryTask, PairsAreARightAnswerAgainstAWrongOne) {
  const Task task = Task::make(GetParam());
  const std::vector<PreferencePair> pairs = task.preference_pairs(), again = task.preference_pairs();
  const std::vector<Problem> worked = task.worked_problems();
  ASSERT_EQ(pairs.size(), worked.size());
  std::set<std::string> rejected;
  for (size_t i = 0; i < pairs.size(); ++i) {
    const PreferencePair& pair = pairs[i];
    EXPECT_EQ(pair.prompt, worked[i].prompt);
    EXPECT_EQ(pair.chosen, worked[i].answer);
    ASSERT_EQ(task.score(pair.rejected, pair.chosen), 0) << pair.prompt << pair.rejected;
    EXPECT_FALSE(pair.rejected.empty());
    EXPECT_EQ(pair.rejected, again[i].rejected);
    rejected.insert(pair.rejected);
  }
  EXPECT_GT(rejected.size(), 3u);
  TaskOptions other;
  other.seed = 2;
  EXPECT_NE(Task::make(GetParam(), other).preference_pairs().front().prompt, pairs.front().prompt);
}

INSTANTIATE_TEST_SUITE_P(Tasks, EveryTask,
                         testing::Values("arithmetic", "chain_sum", "sort", "copy", "reverse", "count"),
                         [](const auto& parameter) { return parameter.param; });

TEST(Task, TheOthersSayWhatTheyAsk) {
  TaskOptions options;
  options.num_items = 3;
  for (int64_t i = 0; i < 50; ++i) {
    const Problem sorting = Task::make("sort", options).problem(i),
                  reversing = Task::make("reverse", options).problem(i);
    std::string letters = sorting.prompt.substr(5, 3);
    std::sort(letters.begin(), letters.end());
    EXPECT_EQ(sorting.prompt.size(), 9u);
    EXPECT_EQ(sorting.answer, letters);
    EXPECT_EQ(reversing.prompt, "reverse " + std::string(reversing.answer.rbegin(), reversing.answer.rend()) + "=");
    const Problem copying = Task::make("copy", options).problem(i), counting = Task::make("count", options).problem(i);
    EXPECT_EQ(copying.prompt, "copy " + copying.answer + "=");
    const std::string text = counting.prompt.substr(11, 3);
    EXPECT_EQ(counting.answer, std::to_string(std::count(text.begin(), text.end(), counting.prompt[6])));
    int a = 0, b = 0, c = 0;
    const Problem sum = Task::make("chain_sum", options).problem(i);
    ASSERT_EQ(std::sscanf(sum.prompt.c_str(), "%d+%d+%d=", &a, &b, &c), 3);
    EXPECT_EQ(sum.answer, std::to_string(a + b + c));
  }
}

TEST(Task, WrongNumbersAreOneOffOrADigitChangedOrAdded) {
  TaskOptions options;
  options.max_operand = 60;
  options.worked_error_share = 0.5;  // pairs have the right answer all the same
  int one_off = 0, changed = 0, longer = 0;
  const auto pairs = Task::make("arithmetic", options).preference_pairs();
  ASSERT_EQ(pairs.size(), 2000u);
  for (const auto& [prompt, chosen, rejected] : pairs) {
    int a = 0, b = 0;
    char sign = 0;
    ASSERT_EQ(std::sscanf(prompt.c_str(), "%d%c%d=", &a, &sign, &b), 3);
    EXPECT_EQ(chosen, std::to_string(sign == '+' ? a + b : a - b));
    ASSERT_NE(std::stoi(rejected), std::stoi(chosen)) << prompt << rejected;
    ASSERT_EQ(rejected, std::to_string(std::stoi(rejected)));  // no leading 0, no minus
    const int difference = std::abs(std::stoi(rejected) - std::stoi(chosen));
    if (rejected.size() > chosen.size() && difference > 1)
      ++longer;
    else if (difference == 1)
      ++one_off;
    else
      ++changed;
  }
  EXPECT_GT(one_off, 500);
  EXPECT_GT(changed, 400);
  EXPECT_GT(longer, 400);
}

TEST(Task, WrongLettersExistForTheSmallestTask) {
  TaskOptions options;
  options.num_items = 1;
  for (const auto& [prompt, chosen, rejected] : Task::make("copy", options).preference_pairs()) {
    EXPECT_EQ(rejected.size(), 1u);
    EXPECT_NE(rejected, chosen);
  }
}

TEST(Task, AnUnknownNameIsAConfigErrorThatListsTheKnown) {
  try {
    Task::make("addition");
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(),
                AllOf(HasSubstr("data.task = \"addition\""), HasSubstr("arithmetic, add1"), HasSubstr("data.path")));
  }
}

TEST(Task, ATaskTooSmallForASplitSaysSo) {
  TaskOptions options;
  options.held_out_share = 1;
  try {
    Task::make("arithmetic", options).problem(0);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("no training problem"), HasSubstr("held_out_share")));
  }
}

TEST(PromptStream, PassesOverADataSetInShuffledOrder) {
  const Tokenizer bytes = Tokenizer::bytes();
  const PromptEncoder encoder(bytes, nullptr);
  std::vector<Problem> problems;
  for (int i = 0; i < 20; ++i) problems.push_back({format("p{}", i), "", ""});
  const PromptStream stream(PromptDataset::of_problems("p", problems, encoder), 7, true);
  EXPECT_EQ(stream.pass_size(), 20);
  std::set<std::string> seen;
  bool moved = false;
  for (int64_t serial = 20; serial < 40; ++serial) {
    const Prompt prompt = stream.at(serial);
    EXPECT_EQ(prompt.serial, serial);
    EXPECT_EQ(prompt.text, format("p{}", prompt.line));
    seen.insert(prompt.text);
    moved |= prompt.line != serial - 20;
  }
  EXPECT_EQ(seen.size(), 20u);
  EXPECT_TRUE(moved);
}

TEST(PromptStream, GivesATasksProblemsByNumber) {
  const Tokenizer bytes = Tokenizer::bytes();
  const Task task = Task::make("arithmetic");
  const PromptStream stream(task, PromptEncoder(bytes, nullptr));
  const Prompt prompt = stream.at(12);
  EXPECT_EQ(prompt.serial, 12);
  EXPECT_EQ(prompt.text, task.problem(12).prompt);
  EXPECT_EQ(prompt.answer, task.problem(12).answer);
  EXPECT_EQ(bytes.decode(prompt.token_ids), prompt.text);
  EXPECT_EQ(stream.pass_size(), 0);
  EXPECT_EQ(stream.hash(), task.hash());
}

TEST(PromptStream, AnEmptyDataSetIsAConfigErrorThatNamesTheLimit) {
  const ScratchDirectory scratch;
  const Tokenizer bytes = Tokenizer::bytes();
  const PromptEncoder encoder(bytes, nullptr);
  DatasetOptions options;
  options.max_prompt_length = 1;
  options.skip_long = true;
  const PromptDataset dataset =
      PromptDataset::load(scratch.write("a.jsonl", "{\"prompt\": \"long\"}\n"), options, encoder);
  try {
    PromptStream(dataset, 1, true);
    FAIL();
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("1 left out"), HasSubstr("data.max_prompt_length")));
  }
}

}  // namespace
}  // namespace temper
