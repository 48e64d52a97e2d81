// The rule rewards: pure functions of prompt and completion, scored at once.
//   exact    1 if the completion is the answer, white space at both ends apart
//   numeric  1 if the number it ends in is the answer's (reward_numeric.h), within reward.numeric.tolerance
//   regex    1 if reward.regex.pattern is found; with a group (?<answer>…), if the last match's group is the answer
//   format   1 if reward.format.pattern matches the whole completion, white space at both ends apart
//   length   1 at reward.length.target tokens, falling in a straight line to 0 at none and at twice as many
//   task     the rule of the generated task
#include <cmath>
#include <stdexcept>

#include "core/error.h"
#include "rollout/code_reward.h"
#include "rollout/command_reward.h"
#include "rollout/reward.h"
#include "rollout/reward_model.h"
#include "rollout/reward_numeric.h"
#include "rollout/reward_pattern.h"

namespace temper {
namespace {

std::string_view trimmed(std::string_view text) {
  constexpr std::string_view kSpace = " \t\r\n\f\v";
  const size_t begin = text.find_first_not_of(kSpace);
  return begin == std::string_view::npos ? std::string_view()
                                         : text.substr(begin, text.find_last_not_of(kSpace) - begin + 1);
}

// Rules throw std::runtime_error with the reason where a completion cannot be scored.
class RuleReward : public Reward {
 public:
  explicit RuleReward(std::string name) : name_(std::move(name)) {}
  const std::string& name() const override { return name_; }

  std::future<std::vector<RewardOutcome>> score(std::shared_ptr<const RolloutGroup> group, Deadline deadline) override {
    std::vector<RewardOutcome> outcomes;
    for (const Completion& completion : group->completions) {
      RewardOutcome outcome;
      try {
        if (std::chrono::steady_clock::now() > deadline) throw std::runtime_error("gave no answer before its deadline");
        outcome.value = score_one(group->prompt, completion);
      } catch (const std::runtime_error& error) {
        outcome.error = error.what();
      }
      outcomes.push_back(std::move(outcome));
    }
    std::promise<std::vector<RewardOutcome>> promise;
    promise.set_value(std::move(outcomes));
    return promise.get_future();
  }

 private:
  virtual double score_one(const Prompt& prompt, const Completion& completion) const = 0;
  std::string name_;
};

const std::string& answer_of(const Prompt& prompt) {
  if (prompt.answer.empty())
    throw std::runtime_error(
        format("the prompt on line {} has no answer to compare with. Add it to the data, or name its field in "
               "[data] answer_field.",
               prompt.line + 1));
  return prompt.answer;
}

class ExactReward final : public RuleReward {
 public:
  ExactReward() : RuleReward("exact") {}

 private:
  double score_one(const Prompt& prompt, const Completion& completion) const override {
    return trimmed(completion.text) == trimmed(answer_of(prompt)) ? 1.0 : 0.0;
  }
};

class NumericReward final : public RuleReward {
 public:
  explicit NumericReward(double tolerance) : RuleReward("numeric"), tolerance_(tolerance) {}

 private:
  double score_one(const Prompt& prompt, const Completion& completion) const override {
    const auto expected = final_number(answer_of(prompt));
    if (!expected)
      throw std::runtime_error(
          format("the answer on line {} holds no number: '{}'. Use the reward exact or regex, or correct the data.",
                 prompt.line + 1, prompt.answer));
    const auto found = final_number(completion.text);
    return found && numbers_agree(*found, *expected, tolerance_) ? 1.0 : 0.0;
  }
  double tolerance_;
};

class RegexReward final : public RuleReward {
 public:
  explicit RegexReward(const std::string& pattern) : RuleReward("regex"), pattern_("reward.regex.pattern", pattern) {}

 private:
  double score_one(const Prompt& prompt, const Completion& completion) const override {
    const auto match = pattern_.last_match(completion.text);
    if (!match) return 0.0;
    return !pattern_.names_answer() || trimmed(*match) == trimmed(answer_of(prompt)) ? 1.0 : 0.0;
  }
  RewardPattern pattern_;
};

class FormatReward final : public RuleReward {
 public:
  explicit FormatReward(const std::string& pattern)
      : RuleReward("format"), pattern_("reward.format.pattern", pattern) {}

 private:
  double score_one(const Prompt&, const Completion& completion) const override {
    return pattern_.matches_whole(trimmed(completion.text)) ? 1.0 : 0.0;
  }
  RewardPattern pattern_;
};

class LengthReward final : public RuleReward {
 public:
  explicit LengthReward(int64_t target) : RuleReward("length"), target_(static_cast<double>(target)) {
    if (target < 1)
      throw ConfigError(
          "reward.length.target = {}: the reward length needs a target of at least 1 token. Set [reward.length] "
          "target.",
          target);
  }

 private:
  double score_one(const Prompt&, const Completion& completion) const override {
    const auto length = static_cast<double>(completion.token_ids.size());
    return std::max(0.0, 1.0 - std::abs(length - target_) / target_);
  }
  double target_;
};

class TaskReward final : public RuleReward {
 public:
  explicit TaskReward(const Task& task) : RuleReward("task"), task_(task) {}

 private:
  double score_one(const Prompt& prompt, const Completion& completion) const override {
    return task_.score(completion.text, answer_of(prompt));
  }
  Task task_;
};

}  // namespace

std::vector<std::unique_ptr<Reward>> make_rewards(const RewardSection& section, const Task* task,
                                                  c10::ScalarType compute, c10::Device device) {
  std::vector<std::unique_ptr<Reward>> rewards;
  for (const std::string& name : section.functions) {
    if (name == "exact") {
      rewards.push_back(std::make_unique<ExactReward>());
    } else if (name == "numeric") {
      rewards.push_back(std::make_unique<NumericReward>(section.numeric.tolerance));
    } else if (name == "regex") {
      rewards.push_back(std::make_unique<RegexReward>(section.regex.pattern));
    } else if (name == "format") {
      rewards.push_back(std::make_unique<FormatReward>(section.format.pattern));
    } else if (name == "length") {
      rewards.push_back(std::make_unique<LengthReward>(section.length.target));
    } else if (name == "task") {
      if (task == nullptr)
        throw ConfigError(
            "reward.functions has \"task\", but [data] names no task. Set data.task, or use exact or numeric.");
      rewards.push_back(std::make_unique<TaskReward>(*task));
    } else if (name == "model") {
      rewards.push_back(std::make_unique<ModelReward>(section.model, compute, device));
    } else if (name == "command") {
      rewards.push_back(make_command_reward(section.command, section.processes));
    } else if (name == "code") {
      rewards.push_back(make_code_reward(section.code, section.processes));
    } else {
      throw ConfigError(
          "reward.functions has \"{}\", which is none of exact, numeric, regex, format, length, task, model, command, "
          "code.",
          name);
    }
  }
  return rewards;
}

}  // namespace temper
