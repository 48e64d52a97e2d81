#include "data/task.h"

#include <algorithm>
#include <set>

#include "core/error.h"
#include "core/hash.h"
#include "core/rng.h"
#include "data/held_out.h"
#include "data/utf8.h"

namespace temper {
namespace {

// Streams of one seed that share nothing.
constexpr uint64_t kTrainStream = 0, kWorkedStream = 1, kEvalStream = 2;
constexpr int64_t kTriesPerProblem = 1000;  // then the task has no further problem of this side

Problem problem_with_answer(std::string prompt, std::string answer) { return {std::move(prompt), answer, answer}; }

Problem arithmetic(SplitMix64& rng, const TaskOptions& options) {
  int64_t a = rng.in_range(0, options.max_operand), b = rng.in_range(0, options.max_operand);
  if (rng.in_range(0, 1) == 0) return problem_with_answer(format("{}+{}=", a, b), std::to_string(a + b));
  if (a < b) std::swap(a, b);
  return problem_with_answer(format("{}-{}=", a, b), std::to_string(a - b));
}

Problem chain_sum(SplitMix64& rng, const TaskOptions& options) {
  std::vector<int64_t> terms;
  int64_t sum = 0;
  for (int64_t i = 0; i < options.num_items; ++i) sum += terms.emplace_back(rng.in_range(0, options.max_operand));
  return problem_with_answer(join(terms, "+") + "=", std::to_string(sum));
}

std::string random_letters(SplitMix64& rng, int64_t count, char last) {
  std::string letters;
  for (int64_t i = 0; i < count; ++i) letters += static_cast<char>(rng.in_range('a', last));
  return letters;
}

Problem sorting(SplitMix64& rng, const TaskOptions& options) {
  const std::string letters = random_letters(rng, options.num_items, 'z');
  std::string sorted = letters;
  std::sort(sorted.begin(), sorted.end());
  return problem_with_answer(format("sort {}=", letters), sorted);
}

Problem copying(SplitMix64& rng, const TaskOptions& options) {
  const std::string letters = random_letters(rng, options.num_items, 'z');
  return problem_with_answer(format("copy {}=", letters), letters);
}

Problem reversing(SplitMix64& rng, const TaskOptions& options) {
  const std::string letters = random_letters(rng, options.num_items, 'z');
  return problem_with_answer(format("reverse {}=", letters), std::string(letters.rbegin(), letters.rend()));
}

Problem counting(SplitMix64& rng, const TaskOptions& options) {
  const std::string letters = random_letters(rng, options.num_items, 'c');
  const char wanted = static_cast<char>(rng.in_range('a', 'c'));
  return problem_with_answer(format("count {} in {}=", wanted, letters),
                             std::to_string(std::count(letters.begin(), letters.end(), wanted)));
}

double score_exact(std::string_view text, std::string_view answer) { return strip(text) == answer ? 1 : 0; }

// The reference task: fixed streams of SplitMix64 draws, two a problem, a before b.
Problem add1_problem(uint64_t seed, int64_t index, int64_t lo, int64_t hi) {
  SplitMix64 rng(seed + 2 * static_cast<uint64_t>(index) * 0x9E3779B97F4A7C15u);  // its state after 2 * index draws
  const int64_t a = rng.in_range(lo, hi), b = rng.in_range(lo, hi);
  return problem_with_answer(format("What is {} + {}? Answer with just the number.", a, b), std::to_string(a + b));
}

ProblemSet add1_set(const char* name, uint64_t seed, int64_t count, int64_t lo, int64_t hi) {
  ProblemSet set{name, {}};
  for (int64_t i = 0; i < count; ++i) set.problems.push_back(add1_problem(seed, i, lo, hi));
  return set;
}

std::string wrong_number(const std::string& right, SplitMix64& rng) {
  const int64_t value = std::stoll(right);
  const auto digit_at = static_cast<size_t>(rng.in_range(0, static_cast<int64_t>(right.size()) - 1));
  switch (rng.in_range(0, 2)) {
    case 0:
      return std::to_string(value == 0 || rng.in_range(0, 1) == 0 ? value + 1 : value - 1);
    case 1: {
      std::string wrong = right;
      // Never a leading 0, so that it differs as a number too.
      const int64_t lowest = digit_at == 0 && right.size() > 1 ? 1 : 0;
      const int64_t digit = rng.in_range(lowest, 8);  // of those that are allowed, the right one left out
      wrong[digit_at] = static_cast<char>('0' + digit + (digit >= right[digit_at] - '0' ? 1 : 0));
      return wrong;
    }
    default:
      return std::to_string(value == 0 ? rng.in_range(1, 9) : 10 * value + rng.in_range(0, 9));
  }
}

std::string wrong_letters(const std::string& right, SplitMix64& rng) {
  std::string wrong = right;
  const auto first = static_cast<size_t>(rng.in_range(0, static_cast<int64_t>(right.size()) - 1));
  const auto second = static_cast<size_t>(rng.in_range(0, static_cast<int64_t>(right.size()) - 1));
  if (right[first] != right[second] && rng.in_range(0, 1) == 0) {
    std::swap(wrong[first], wrong[second]);
  } else {
    const int64_t step = rng.in_range(1, 25);
    wrong[first] = static_cast<char>('a' + (right[first] - 'a' + step) % 26);
  }
  return wrong;
}

// 1 if the last run of digits is the answer.
double score_last_number(std::string_view text, std::string_view answer) {
  const auto is_digit = [](char c) { return c >= '0' && c <= '9'; };
  size_t end = text.size();
  while (end > 0 && !is_digit(text[end - 1])) --end;
  size_t begin = end;
  while (begin > 0 && is_digit(text[begin - 1])) --begin;
  return end > begin && text.substr(begin, end - begin) == answer ? 1 : 0;
}

}  // namespace

struct Task::Definition {
  const char* name;
  Problem (*make)(SplitMix64& rng, const TaskOptions& options);  // nullptr: add1
  double (*score)(std::string_view text, std::string_view answer);
  bool chat;

  static const std::vector<Definition>& all() {
    static const std::vector<Definition> kAll = {
        {"arithmetic", arithmetic, score_exact, false}, {"add1", nullptr, score_last_number, true},
        {"chain_sum", chain_sum, score_exact, false},   {"sort", sorting, score_exact, false},
        {"copy", copying, score_exact, false},          {"reverse", reversing, score_exact, false},
        {"count", counting, score_exact, false}};
    return kAll;
  }
};

Task Task::make(const std::string& name, const TaskOptions& options) {
  if (options.max_operand < 1 || options.num_items < 1)
    throw ConfigError("task {}: max_operand {} and num_items {} must be at least 1.", name, options.max_operand,
                      options.num_items);
  if (options.worked_error_share > 0 && name != "arithmetic" && name != "chain_sum")
    throw ConfigError("data.generated.worked_error_share = {}: task {} has no number to be one off. Set it to 0.",
                      options.worked_error_share, name);
  for (const Definition& definition : Definition::all())
    if (name == definition.name) return Task(definition, options);
  throw ConfigError(
      "data.task = \"{}\" is not known. Known tasks: {}. For your own problems give a JSONL file with data.path.", name,
      join(names()));
}

std::vector<std::string> Task::names() {
  std::vector<std::string> names;
  for (const Definition& definition : Definition::all()) names.push_back(definition.name);
  return names;
}

std::string Task::name() const { return definition_->name; }
bool Task::uses_chat_template() const { return definition_->chat; }
double Task::score(std::string_view text, std::string_view answer) const { return definition_->score(text, answer); }

// The index-th problem of a stream: drawn again until it falls on the wanted side of the split.
Problem Task::drawn(uint64_t stream, int64_t index, bool held_out) const {
  // hashed, so that neighbouring indices share no draws
  const uint64_t key = SplitMix64(options_.seed).next() ^ (3 * static_cast<uint64_t>(index) + stream);
  SplitMix64 rng(SplitMix64(key).next());
  for (int64_t i = 0; i < kTriesPerProblem; ++i) {
    Problem problem = definition_->make(rng, options_);
    if (is_held_out(problem.prompt, options_.held_out_share) == held_out) return problem;
  }
  throw ConfigError(
      "task {}: no {} problem was found. Make the task larger (max_operand {}, num_items {}) or change held_out_share "
      "{}.",
      name(), held_out ? "held-out" : "training", options_.max_operand, options_.num_items, options_.held_out_share);
}

// Fewer where the task has fewer.
std::vector<Problem> Task::distinct(uint64_t stream, int64_t count, bool held_out) const {
  std::vector<Problem> problems;
  std::set<std::string> seen;
  for (int64_t index = 0; static_cast<int64_t>(problems.size()) < count && index < 20 * count; ++index) {
    Problem problem = drawn(stream, index, held_out);
    if (seen.insert(problem.prompt).second) problems.push_back(std::move(problem));
  }
  return problems;
}

Problem Task::problem(int64_t index) const {
  TEMPER_CHECK(index >= 0, "problem {}", index);
  if (definition_->make == nullptr) return add1_problem(options_.seed, index, 1, 9);
  return drawn(kTrainStream, index, false);
}

std::vector<Problem> Task::worked_problems() const {
  if (definition_->make == nullptr) {
    std::vector<Problem> problems;
    for (int64_t i = 0; i < options_.num_worked; ++i) problems.push_back(problem(i));
    return problems;
  }
  if (options_.worked_error_share == 0) return distinct(kWorkedStream, options_.num_worked, false);
  // Drawn with repetition, so that the same problem is solved now right, now wrong.
  std::vector<Problem> problems;
  for (int64_t index = 0; index < options_.num_worked; ++index) {
    problems.push_back(drawn(kWorkedStream, index, false));
    const double u = uniform_draw({options_.seed, index, 0, 0});
    if (u < options_.worked_error_share)
      problems.back().completion = std::to_string(std::stoll(problems.back().answer) + 1);
  }
  return problems;
}

std::vector<PreferencePair> Task::preference_pairs() const {
  std::vector<PreferencePair> pairs;
  for (const Problem& problem : worked_problems()) {
    SplitMix64 rng(xxh3_64(format("pair {} {}", options_.seed, pairs.size())));
    const bool is_number = problem.answer.find_first_not_of("0123456789") == std::string::npos;
    pairs.push_back({problem.prompt, problem.answer,
                     is_number ? wrong_number(problem.answer, rng) : wrong_letters(problem.answer, rng)});
  }
  return pairs;
}

std::vector<ProblemSet> Task::eval_sets(int64_t num_problems) const {
  if (definition_->make == nullptr)
    return {add1_set("add1_near", 777, 200, 1, 9), add1_set("add1_far", 778, 100, 10, 20)};
  return {{name(), distinct(kEvalStream, num_problems, true)}};
}

std::string Task::hash() const {
  return xxh3_128_hex(format("{} {} {} {} {} {} {}", name(), options_.seed, options_.max_operand, options_.num_items,
                             options_.num_worked, options_.worked_error_share, options_.held_out_share));
}

}  // namespace temper
