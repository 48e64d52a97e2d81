// A program that is spoken to over its standard input and output: an external reward, the sandbox of a code reward. It
// runs in a process group of its own, so that a terminal's Ctrl-C does not reach it and ending it ends what it started.
// One thread at a time. Its making has SIGPIPE ignored from then on in this process (not in the child).
#pragma once
#include <sys/types.h>

#include <chrono>
#include <mutex>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class ChildProcess {
 public:
  using Deadline = std::chrono::steady_clock::time_point;
  enum class Errors { kPassOn, kCapture };  // standard error: ours, or read by read_all()

  // words: the program, found on the PATH, and its arguments. IoError where it cannot be started.
  explicit ChildProcess(const std::vector<std::string>& words, Errors errors = Errors::kPassOn);
  ~ChildProcess();  // ends the group with SIGKILL
  ChildProcess(const ChildProcess&) = delete;
  ChildProcess& operator=(const ChildProcess&) = delete;

  enum class Result {
    kDone,
    kLate,    // the deadline passed
    kClosed,  // the program closed its end, or ended
    kTooLong  // more than max_bytes
  };
  // All of the bytes, or kLate, kClosed.
  Result write(std::string_view bytes, Deadline deadline);
  void close_input();
  // Appends to `line` up to the next newline, which is dropped.
  Result read_line(std::string& line, Deadline deadline, size_t max_bytes);
  // Until the program has closed both outputs. Nothing more can be read then.
  Result read_all(std::string& output, std::string& errors, Deadline deadline, size_t max_bytes);
  // The exit code, 128 + N after signal N; nothing at the deadline.
  std::optional<int> wait(Deadline deadline);
  void kill();
  // Ends the group, from any other thread: what waits for the program finds it closed.
  void interrupt();

 private:
  Result fill(Deadline deadline);  // buffer_ from the program's output

  pid_t pid_ = -1;
  int input_ = -1, output_ = -1, errors_ = -1;
  std::string buffer_;            // read, not handed out
  std::mutex mutex_;              // the process is not waited for between a look at exit_code_ and a signal
  std::optional<int> exit_code_;  // written under mutex_
};

}  // namespace temper
