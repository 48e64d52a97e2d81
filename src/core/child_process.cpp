#include "core/child_process.h"

#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstring>
#include <thread>
#include <utility>

#include "core/error.h"

namespace temper {
namespace {

struct Pipe {
  int ends[2] = {-1, -1};
  Pipe() {
    if (pipe2(ends, O_CLOEXEC) != 0) throw IoError("no pipe to a child process: {}.", std::strerror(errno));
  }
  ~Pipe() {
    for (const int end : ends)
      if (end >= 0) ::close(end);
  }
  int take(int end) {
    fcntl(ends[end], F_SETFL, O_NONBLOCK);
    return std::exchange(ends[end], -1);
  }
};

// Milliseconds until the deadline, rounded up, for poll(); 0 once it has passed.
int remaining_ms(ChildProcess::Deadline deadline) {
  const auto left = std::chrono::ceil<std::chrono::milliseconds>(deadline - std::chrono::steady_clock::now()).count();
  return static_cast<int>(std::clamp<int64_t>(left, 0, 1000));
}

bool passed(ChildProcess::Deadline deadline) { return std::chrono::steady_clock::now() >= deadline; }

void close_end(int& end) {
  if (end >= 0) ::close(std::exchange(end, -1));
}

// Appends what is there; false at the end of the stream.
bool read_some(int end, std::string& bytes) {
  char part[65536];
  const ssize_t count = ::read(end, part, sizeof part);
  if (count < 0) return errno == EAGAIN || errno == EINTR;
  bytes.append(part, static_cast<size_t>(count));
  return count > 0;
}

}  // namespace

ChildProcess::ChildProcess(const std::vector<std::string>& words, Errors errors) {
  std::signal(SIGPIPE, SIG_IGN);  // a program that ends early is told by write()
  Pipe in, out, err;
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.ends[0], STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.ends[1], STDOUT_FILENO);
  if (errors == Errors::kCapture) posix_spawn_file_actions_adddup2(&actions, err.ends[1], STDERR_FILENO);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t all, none;
  sigfillset(&all);
  sigemptyset(&none);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETPGROUP | POSIX_SPAWN_SETSIGDEF | POSIX_SPAWN_SETSIGMASK);
  posix_spawnattr_setpgroup(&attributes, 0);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setsigmask(&attributes, &none);
  std::vector<char*> arguments;
  for (const std::string& word : words) arguments.push_back(const_cast<char*>(word.c_str()));
  arguments.push_back(nullptr);
  const int failure = posix_spawnp(&pid_, arguments[0], &actions, &attributes, arguments.data(), environ);
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (failure != 0) throw IoError("{} cannot be started: {}.", words.front(), std::strerror(failure));
  input_ = in.take(1);
  output_ = out.take(0);
  if (errors == Errors::kCapture) errors_ = err.take(0);
}

ChildProcess::~ChildProcess() {
  kill();
  for (int* end : {&input_, &output_, &errors_}) close_end(*end);
}

void ChildProcess::kill() {
  if (exit_code_) return;
  ::kill(-pid_, SIGKILL);
  wait(Deadline::max());
}

void ChildProcess::interrupt() {
  const std::lock_guard lock(mutex_);
  if (!exit_code_) ::kill(-pid_, SIGKILL);
}

void ChildProcess::close_input() { close_end(input_); }

ChildProcess::Result ChildProcess::write(std::string_view bytes, Deadline deadline) {
  while (!bytes.empty()) {
    const ssize_t count = ::write(input_, bytes.data(), bytes.size());
    if (count > 0) bytes.remove_prefix(static_cast<size_t>(count));
    if (count >= 0 || errno == EINTR) continue;
    if (errno != EAGAIN) return Result::kClosed;
    if (passed(deadline)) return Result::kLate;
    pollfd waiting{input_, POLLOUT, 0};
    poll(&waiting, 1, remaining_ms(deadline));
  }
  return Result::kDone;
}

ChildProcess::Result ChildProcess::fill(Deadline deadline) {
  pollfd waiting{output_, POLLIN, 0};
  while (poll(&waiting, 1, remaining_ms(deadline)) <= 0)
    if (passed(deadline)) return Result::kLate;
  return read_some(output_, buffer_) ? Result::kDone : Result::kClosed;
}

ChildProcess::Result ChildProcess::read_line(std::string& line, Deadline deadline, size_t max_bytes) {
  size_t searched = 0;
  for (;;) {
    const size_t end = buffer_.find('\n', searched);
    if (end != std::string::npos) {
      line.append(buffer_, 0, end);
      buffer_.erase(0, end + 1);
      return Result::kDone;
    }
    searched = buffer_.size();
    if (searched > max_bytes) return Result::kTooLong;
    if (const Result result = fill(deadline); result != Result::kDone) return result;
  }
}

ChildProcess::Result ChildProcess::read_all(std::string& output, std::string& errors, Deadline deadline,
                                            size_t max_bytes) {
  output.append(std::exchange(buffer_, {}));
  while (output_ >= 0 || errors_ >= 0) {
    if (output.size() + errors.size() > max_bytes) return Result::kTooLong;
    pollfd waiting[2] = {{output_, POLLIN, 0}, {errors_, POLLIN, 0}};  // poll() passes over -1
    if (poll(waiting, 2, remaining_ms(deadline)) <= 0) {
      if (passed(deadline)) return Result::kLate;
      continue;
    }
    if (waiting[0].revents != 0 && !read_some(output_, output)) close_end(output_);
    if (waiting[1].revents != 0 && !read_some(errors_, errors)) close_end(errors_);
  }
  return Result::kDone;
}

std::optional<int> ChildProcess::wait(Deadline deadline) {
  constexpr auto kPause = std::chrono::milliseconds(1);
  while (!exit_code_) {
    siginfo_t ended{};
    const int code =
        waitid(P_PID, static_cast<id_t>(pid_), &ended, WEXITED | WNOWAIT | (deadline == Deadline::max() ? 0 : WNOHANG));
    if (code != 0 && errno == EINTR) continue;
    if (code != 0 || ended.si_pid == pid_) {
      const std::lock_guard lock(mutex_);
      int status = 0;
      if (code != 0 || waitpid(pid_, &status, 0) != pid_)
        exit_code_ = 127;  // somebody else waited for it
      else
        exit_code_ = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
    } else if (passed(deadline)) {
      return std::nullopt;
    } else {
      std::this_thread::sleep_for(kPause);
    }
  }
  return exit_code_;
}

}  // namespace temper
