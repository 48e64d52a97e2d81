#include "rollout/code_reward.h"

#include <unistd.h>

#include <atomic>
#include <cmath>
#include <mutex>
#include <nlohmann/json.hpp>
#include <random>
#include <sstream>

#include "core/child_process.h"
#include "core/error.h"
#include "rollout/parallel_reward.h"

namespace temper {
namespace {

using nlohmann::json;

constexpr size_t kMostOutput = 1 << 20;
constexpr size_t kLongestProgram = 120'000;  // it travels as one argument, which Linux bounds at 128 KiB
constexpr double kGraceSeconds = 2;          // for the sandbox itself

struct Test {
  std::string code;  // run after the program
  std::optional<std::string> input, output;
};

std::vector<Test> tests_of(const Prompt& prompt, const std::string& field) {
  const auto found = prompt.fields.find(field);
  if (found == prompt.fields.end())
    throw std::runtime_error(
        format("the prompt on line {} has no field '{}' with tests. Add it to the data, or name "
               "its field in [reward.code] tests_field.",
               prompt.line + 1, field));
  const json value = json::parse(found->second);
  const auto refuse = [&] {
    throw std::runtime_error(
        format("the field '{}' on line {} must be a text, or a list of texts and of "
               "{\"input\", \"output\"}; it is {}.",
               field, prompt.line + 1, found->second.substr(0, 200)));
  };
  if (!value.is_string() && (!value.is_array() || value.empty())) refuse();
  std::vector<Test> tests;
  for (const json& item : value.is_array() ? value : json::array({value})) {
    if (item.is_string())
      tests.push_back({.code = item.get<std::string>(), .input = {}, .output = {}});
    else if (item.is_object() && item.value("input", json()).is_string() && item.value("output", json()).is_string())
      tests.push_back(
          {.code = "", .input = item["input"].get<std::string>(), .output = item["output"].get<std::string>()});
    else
      refuse();
  }
  return tests;
}

// The last block between lines that begin with ```; all of the text where there is none.
std::string program_in(const std::string& text) {
  std::istringstream lines(text);
  std::string line, block, last;
  bool inside = false, found = false;
  while (std::getline(lines, line)) {
    if (line.starts_with("```")) {
      if (inside) last = block;
      found |= inside;
      inside = !inside;
      block.clear();
    } else if (inside) {
      block += line + "\n";
    }
  }
  if (found) return last;
  return inside ? block : text;  // a block that the completion's end cut off
}

// Lines without the white space that they end in; no empty lines at the end.
std::string normalized(const std::string& text) {
  std::istringstream lines(text);
  std::string line, out;
  size_t end = 0;
  while (std::getline(lines, line)) {
    const size_t last = line.find_last_not_of(" \t\r");
    out += line.substr(0, last == std::string::npos ? 0 : last + 1) + "\n";
    if (last != std::string::npos) end = out.size();
  }
  return out.substr(0, end);
}

uint64_t random_word() {
  static std::mutex mutex;
  static std::random_device device;
  const std::lock_guard lock(mutex);
  return static_cast<uint64_t>(device()) << 32 | device();
}

class CodeReward final : public ParallelReward {
 public:
  CodeReward(const RewardSection::Code& settings, int num_at_once)
      : ParallelReward("code", num_at_once), settings_(settings) {
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(20);
    Run run;
    try {
      run = execute("print(2 + 3)", "", deadline);
    } catch (const std::exception& error) {
      refuse(error.what());
    }
    if (!run.passed || normalized(run.output) != "5\n") refuse(format("python3 in it said '{}'", run.output));
  }
  ~CodeReward() override { stop(); }

 private:
  struct Run {
    bool passed = false;  // exit code 0 in time
    std::string output;
  };

  [[noreturn]] static void refuse(const std::string& why) {
    throw ConfigError(
        "reward.functions has \"code\", but programs cannot be run in a sandbox here: {}. Install bubblewrap, "
        "util-linux "
        "and python3, and allow user namespaces.",
        why);
  }

  double score_one(const Prompt& prompt, const Completion& completion, Deadline deadline) override {
    const std::vector<Test> tests = tests_of(prompt, settings_.tests_field);
    const std::string program = program_in(completion.text);
    int64_t num_passed = 0;
    for (const Test& test : tests) num_passed += passes(program, test, deadline);
    return static_cast<double>(num_passed) / static_cast<double>(tests.size());
  }

  bool passes(const std::string& program, const Test& test, Deadline deadline) const {
    const std::string mark = std::to_string(random_word());
    const std::string whole = test.output ? program : format("{}\n{}\nprint('\\n{}')\n", program, test.code, mark);
    if (whole.size() > kLongestProgram || whole.find('\0') != std::string::npos) return false;
    const auto seconds = std::chrono::duration<double>(settings_.timeout_s + kGraceSeconds);
    const Deadline own = std::chrono::steady_clock::now() + std::chrono::duration_cast<Deadline::duration>(seconds);
    if (own > deadline)
      throw std::runtime_error(
          "there was no time left for all tests of the group before the deadline. Raise reward.timeout_s, or "
          "reward.processes.");
    const Run run = execute(whole, test.input.value_or(""), own);
    if (!run.passed) return false;
    const std::string output = normalized(run.output);
    // A program that ends before its tests were run has not passed them, whatever its exit code.
    return test.output ? output == normalized(*test.output) : output.ends_with("\n" + mark + "\n");
  }

  // bubblewrap, inside it the bounds, inside these Python in isolation with its errors dropped. bubblewrap itself tells
  // on its standard error how the program ended; where it does not, the sandbox has failed.
  std::vector<std::string> command(const std::string& program) const {
    // Root needs no user namespace, which may be forbidden, but another user inside: Linux bounds the number of
    // processes, counted by user, for everybody but root. A user of its own for each program keeps the counts apart.
    static std::atomic<int> num_runs{0};
    constexpr int kFirstUser = 2'000'000'000, kNumUsers = 1'000'000;
    const std::string user = std::to_string(kFirstUser + (getpid() * 1000 + num_runs.fetch_add(1)) % kNumUsers);
    std::vector<std::string> words = {"bwrap"};
    std::string become;
    if (geteuid() == 0)
      become = "setpriv --reuid=" + user + " --regid=" + user +
               " --clear-groups --no-new-privs --bounding-set=-all --inh-caps=-all ";
    else
      words.emplace_back("--unshare-user");
    for (const char* word : {"--unshare-pid",
                             "--unshare-net",
                             "--unshare-ipc",
                             "--unshare-uts",
                             "--unshare-cgroup-try",
                             "--die-with-parent",
                             "--new-session",
                             "--ro-bind",
                             "/usr",
                             "/usr",
                             "--symlink",
                             "usr/bin",
                             "/bin",
                             "--symlink",
                             "usr/lib",
                             "/lib",
                             "--symlink",
                             "usr/lib64",
                             "/lib64",
                             "--proc",
                             "/proc",
                             "--dev",
                             "/dev",
                             "--size",
                             "67108864",
                             "--perms",
                             "1777",
                             "--tmpfs",
                             "/tmp",
                             "--chdir",
                             "/tmp",
                             "--clearenv",
                             "--setenv",
                             "PATH",
                             "/usr/bin",
                             "--setenv",
                             "HOME",
                             "/tmp",
                             "--json-status-fd",
                             "2",
                             "--",
                             "/bin/sh",
                             "-c"})
      words.emplace_back(word);
    words.push_back("exec " + become +
                    R"(prlimit --cpu="$1" --as="$2" --nproc=32 --fsize=16777216 --nofile=64 --core=0 -- )"
                    R"(python3 -I -c "$0" 2>/dev/null)");
    words.push_back(program);
    words.push_back(std::to_string(static_cast<int64_t>(std::ceil(settings_.timeout_s))));
    words.push_back(std::to_string(settings_.memory_mb << 20));
    return words;
  }

  Run execute(const std::string& program, const std::string& input, Deadline deadline) const {
    using Result = ChildProcess::Result;
    ChildProcess process(command(program), ChildProcess::Errors::kCapture);
    const Running running(*this, process);
    if (process.write(input, deadline) == Result::kLate) return {};  // it reads nothing: too slow
    process.close_input();
    Run run;
    std::string status;
    if (process.read_all(run.output, status, deadline, kMostOutput) != Result::kDone) return {};
    process.wait(deadline);
    const size_t at = status.rfind("\"exit-code\": ");
    if (at == std::string::npos) {
      const size_t end = status.find_last_not_of("\n");
      throw std::runtime_error(
          format("the sandbox failed: {}", end == std::string::npos ? "it said nothing" : status.substr(0, end + 1)));
    }
    run.passed = std::atoi(status.c_str() + at + 13) == 0;
    return run;
  }

  RewardSection::Code settings_;
};

}  // namespace

std::unique_ptr<Reward> make_code_reward(const RewardSection::Code& settings, int64_t num_at_once) {
  return std::make_unique<CodeReward>(settings, static_cast<int>(num_at_once));
}

}  // namespace temper
