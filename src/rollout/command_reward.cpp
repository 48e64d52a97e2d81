#include "rollout/command_reward.h"

#include <mutex>
#include <nlohmann/json.hpp>

#include "core/child_process.h"
#include "core/error.h"
#include "rollout/parallel_reward.h"

namespace temper {
namespace {

using nlohmann::json;

constexpr size_t kLongestAnswer = 1 << 20;
constexpr size_t kShownBytes = 200;

std::string question(const Prompt& prompt, const Completion& completion) {
  json line = {{"prompt", prompt.text},
               {"completion", completion.text},
               {"answer", prompt.answer},
               {"finish_reason", completion.finish_reason == FinishReason::kLength ? "length" : "stop"},
               {"fields", json::object()}};
  for (const auto& [name, value] : prompt.fields) line["fields"][name] = json::parse(value);
  return line.dump(-1, ' ', false, json::error_handler_t::replace) + "\n";
}

double reward_in(const std::string& line) {
  const json answer = json::parse(line, nullptr, /*allow_exceptions=*/false);
  if (answer.is_number()) return answer.get<double>();
  if (answer.is_object() && answer.contains("reward") && answer["reward"].is_number())
    return answer["reward"].get<double>();
  if (answer.is_object() && answer.contains("error") && answer["error"].is_string())
    throw std::runtime_error(answer["error"].get<std::string>());
  throw std::runtime_error(
      format("reward.command answered '{}'. It must print a number, {\"reward\": NUMBER} or {\"error\": TEXT}, one "
             "line for each that it reads.",
             line.substr(0, kShownBytes)));
}

class CommandReward final : public ParallelReward {
 public:
  CommandReward(std::string command, int num_processes)
      : ParallelReward("command", num_processes), command_(std::move(command)) {}
  ~CommandReward() override { stop(); }

 private:
  double score_one(const Prompt& prompt, const Completion& completion, Deadline deadline) override {
    std::unique_ptr<ChildProcess> process = take_idle();
    std::string line;
    const ChildProcess::Result result = ask(*process, question(prompt, completion), line, deadline);
    if (result != ChildProcess::Result::kDone) throw std::runtime_error(why_none(*process, result));
    const double reward = reward_in(line);  // throws: what it says next may answer anything
    const std::lock_guard lock(mutex_);
    idle_.push_back(std::move(process));
    return reward;
  }

  ChildProcess::Result ask(ChildProcess& process, const std::string& words, std::string& answer, Deadline deadline) {
    const Running running(*this, process);
    const ChildProcess::Result result = process.write(words, deadline);
    return result == ChildProcess::Result::kDone ? process.read_line(answer, deadline, kLongestAnswer) : result;
  }

  std::unique_ptr<ChildProcess> take_idle() {
    {
      const std::lock_guard lock(mutex_);
      if (!idle_.empty()) {
        std::unique_ptr<ChildProcess> process = std::move(idle_.back());
        idle_.pop_back();
        return process;
      }
    }
    return std::make_unique<ChildProcess>(std::vector<std::string>{"/bin/sh", "-c", command_});
  }

  std::string why_none(ChildProcess& process, ChildProcess::Result result) const {
    if (result == ChildProcess::Result::kLate)
      return "reward.command gave no answer before the deadline (reward.timeout_s) and was ended";
    if (result == ChildProcess::Result::kTooLong)
      return format("reward.command wrote more than {} bytes without a newline", kLongestAnswer);
    const std::optional<int> code = process.wait(std::chrono::steady_clock::now() + std::chrono::seconds(1));
    if (!code) return "reward.command closed its standard output without an answer";
    return format("reward.command ended with exit code {} before it answered{}", *code,
                  *code == 126 || *code == 127 ? ": is the program there, and may it be executed?" : "");
  }

  std::string command_;
  std::mutex mutex_;
  std::vector<std::unique_ptr<ChildProcess>> idle_;  // guarded by mutex_
};

}  // namespace

std::unique_ptr<Reward> make_command_reward(const std::string& command, int64_t num_processes) {
  if (command.empty())
    throw ConfigError(
        "reward.functions has \"command\", but reward.command is empty. Set it to a program that reads one JSON line a "
        "completion and prints one with its reward.");
  return std::make_unique<CommandReward>(command, static_cast<int>(num_processes));
}

}  // namespace temper
