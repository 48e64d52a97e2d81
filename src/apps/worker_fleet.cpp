#include "apps/worker_fleet.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>

#include "core/error.h"
#include "core/log.h"
#include "core/process.h"

extern char** environ;

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kLook = std::chrono::milliseconds(50);
constexpr auto kRestartAfter = std::chrono::milliseconds(300);
constexpr auto kTimeToLeave = std::chrono::seconds(3);
// Where they share cores with the trainer it goes first when it has work: while it computes, workers are ahead of it
// and will wait for its weights; when it waits for groups, they have the cores.
constexpr int kNiceness = 5;

std::vector<char*> pointers(const std::vector<std::string>& words) {
  std::vector<char*> all;
  for (const std::string& word : words) all.push_back(const_cast<char*>(word.c_str()));
  all.push_back(nullptr);
  return all;
}

// This process's, with the cores shared out where the user has not said how many threads one is to use.
std::vector<std::string> worker_environment(int64_t num_workers) {
  std::vector<std::string> all;
  for (char** entry = environ; *entry != nullptr; ++entry) all.emplace_back(*entry);
  const auto add = [&all](const std::string& name, const std::string& value) {
    const auto same = [&name](const std::string& entry) { return entry.starts_with(name + "="); };
    if (std::none_of(all.begin(), all.end(), same)) all.push_back(name + "=" + value);
  };
  const auto cores = static_cast<int64_t>(std::thread::hardware_concurrency());
  add("OMP_NUM_THREADS", std::to_string(std::max<int64_t>(1, cores / num_workers)));
  add("OMP_WAIT_POLICY", "passive");  // who waits leaves the cores to those that compute
  return all;
}

std::string describe_end(int status) {
  return WIFSIGNALED(status) ? format("killed by signal {}", WTERMSIG(status))
                             : format("exit code {}", WEXITSTATUS(status));
}

}  // namespace

WorkerFleet::WorkerFleet(int64_t num_workers, const std::vector<std::string>& arguments, const std::string& logs)
    : environment_(worker_environment(num_workers)), logs_(logs) {
  const std::string program = std::filesystem::read_symlink("/proc/self/exe");
  for (int64_t i = 0; i < num_workers; ++i) {
    Child child;
    child.command = {program, "rollout"};
    child.command.insert(child.command.end(), arguments.begin(), arguments.end());
    child.command.push_back(format("--name={}/{}", host_name(), i));
    child.log = format("{}/worker_{}.log", logs, i);
    child.command.push_back("--log-file=" + child.log);
    children_.push_back(std::move(child));
  }
  thread_ = std::thread([this] { watch(); });
}

WorkerFleet::~WorkerFleet() {
  closing_ = true;
  thread_.join();
}

void WorkerFleet::check() const {
  if (num_refused_ == children_.size())
    throw ConfigError("all {} rollout workers ended with exit code 2. Their reasons stand in {}/worker_*.log.",
                      children_.size(), logs_);
}

// produces: workers; consumes: their ends; waits for: time; is unblocked by: the destructor, at its next look.
void WorkerFleet::watch() {
  while (!closing_) {
    for (Child& child : children_) {
      int status = 0;
      if (child.pid > 0 && waitpid(child.pid, &status, WNOHANG) == child.pid) reap(child, status);
      if (child.pid < 0 && !child.refused && Clock::now() >= child.start_at) start(child);
    }
    std::this_thread::sleep_for(kLook);
  }
  end_all();
}

void WorkerFleet::reap(Child& child, int status) {
  child.pid = -1;
  child.start_at = Clock::now() + kRestartAfter;
  child.refused = WIFEXITED(status) && WEXITSTATUS(status) == static_cast<int>(ExitCode::kConfig);
  if (child.refused) ++num_refused_;
  if (status == 0) return;  // its hub is done
  log_warning("a rollout worker ended ({}): {}. Its log is {}", describe_end(status),
              child.refused ? "it is not started again" : "it is started again", child.log);
}

// Between fork and exec only what a process with threads may call: everything is made before.
void WorkerFleet::start(Child& child) {
  const std::vector<char*> command = pointers(child.command), environment = pointers(environment_);
  const int log = open(child.log.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  const pid_t parent = getpid();
  const pid_t pid = fork();
  if (pid == 0) {
    setpgid(0, 0);
    prctl(PR_SET_PDEATHSIG, SIGKILL);
    [[maybe_unused]] const int ignored = nice(kNiceness);
    if (getppid() != parent) _exit(static_cast<int>(ExitCode::kComm));
    if (log >= 0) {
      dup2(log, STDOUT_FILENO);
      dup2(log, STDERR_FILENO);
    }
    execve(command[0], command.data(), environment.data());
    _exit(127);
  }
  const int error = errno;
  if (log >= 0) close(log);
  child.pid = pid;
  if (pid > 0) return;
  child.start_at = Clock::now() + kRestartAfter;
  log_warning("a rollout worker cannot be started ({}); the next try comes soon", std::strerror(error));
}

void WorkerFleet::end_all() {
  for (const Child& child : children_)
    if (child.pid > 0) kill(child.pid, SIGTERM);
  const Clock::time_point deadline = Clock::now() + kTimeToLeave;
  for (Child& child : children_) {
    if (child.pid <= 0) continue;
    int status = 0;
    pid_t ended = 0;
    while ((ended = waitpid(child.pid, &status, WNOHANG)) == 0 && Clock::now() < deadline)
      std::this_thread::sleep_for(kLook);
    if (ended == 0) {  // stopped by somebody, or busy
      kill(child.pid, SIGKILL);
      waitpid(child.pid, &status, 0);
    }
  }
}

}  // namespace temper
