// Generated tasks ([data] task): problems without end from a seed, the rule that scores an answer, worked problems for
// SFT, and evaluation sets. Problems are split by a hash of their text: none held out is trained on (but add1, the
// reference task, has its three fixed streams). A value type; all members are pure functions of (options, arguments).
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

struct Problem {
  std::string prompt;
  std::string answer;      // what score() compares with
  std::string completion;  // what SFT learns
};

struct PreferencePair {
  std::string prompt;
  std::string chosen;    // the right answer
  std::string rejected;  // one like it that is wrong
};

struct ProblemSet {
  std::string name;  // NAME of eval/NAME/accuracy
  std::vector<Problem> problems;
};

struct TaskOptions {
  uint64_t seed = 1;          // of the problem stream
  int64_t max_operand = 99;   // arithmetic, chain_sum: numbers in 0..max_operand
  int64_t num_items = 4;      // chain_sum: terms; sort, copy, reverse, count: length
  int64_t num_worked = 2000;  // worked problems for SFT, preference pairs; fewer where the task has fewer
  double worked_error_share =
      0;  // of the worked problems: a careless teacher, one off in the answer; arithmetic, chain_sum
  double held_out_share = 0.1;  // of all problems
};

class Task {
 public:
  static Task make(const std::string& name, const TaskOptions& options = {});  // ConfigError names the known tasks
  static std::vector<std::string> names();

  std::string name() const;
  // Whether its prompts are meant for a chat model: then encode them with the model's template, where it has one; else
  // raw.
  bool uses_chat_template() const;
  Problem problem(int64_t index) const;  // of the training stream; index >= 0
  std::vector<Problem> worked_problems() const;
  // The worked problems' right answers, each against a wrong one: a number one off, with a digit changed or with one
  // digit more; letters with two of them swapped or one of them changed.
  std::vector<PreferencePair> preference_pairs() const;
  // num_problems: at most so many a set; add1's sets have their fixed sizes.
  std::vector<ProblemSet> eval_sets(int64_t num_problems) const;
  double score(std::string_view text, std::string_view answer) const;  // in [0, 1]; 1 is correct
  std::string hash() const;

 private:
  struct Definition;
  Task(const Definition& definition, const TaskOptions& options) : definition_(&definition), options_(options) {}
  Problem drawn(uint64_t stream, int64_t index, bool held_out) const;
  std::vector<Problem> distinct(uint64_t stream, int64_t count, bool held_out) const;
  const Definition* definition_;  // static
  TaskOptions options_;
};

}  // namespace temper
