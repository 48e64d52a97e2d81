#include "apps/rank_launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/ioctl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <optional>
#include <thread>

#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/interrupt.h"
#include "core/log.h"
#include "core/log_context.h"
#include "observe/run_status.h"

namespace temper {
namespace {

constexpr int kNotFound = 127;

// Of the terminal that the ranks' standard error ends on; 0: it is none.
int terminal_columns() {
  constexpr int kUsual = 80;
  if (isatty(STDERR_FILENO) != 1) return 0;
  winsize size{};
  return ioctl(STDERR_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col > 0 ? size.ws_col : kUsual;
}

std::vector<std::string> mpirun_command(int64_t num_ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {"mpirun",  "-n",   std::to_string(num_ranks), "--bind-to", "none",
                                      "--stdin", "none", "--oversubscribe"};
  // Ranks that lost one wait in an operation that cannot end: no second in which they might end by themselves.
  command.insert(command.end(), {"--mca", "odls_base_sigkill_timeout", "0"});
  if (geteuid() == 0) command.emplace_back("--allow-run-as-root");
  command.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  command.emplace_back("train");
  command.emplace_back("--with-workers");
  command.push_back(format("--terminal-columns={}", terminal_columns()));
  command.insert(command.end(), arguments.begin(), arguments.end());
  return command;
}

// In the child: never returns. A group of its own keeps the terminal's Ctrl-C from mpirun, which would kill the ranks.
[[noreturn]] void become(const std::vector<std::string>& command, int64_t num_ranks, int error_pipe, pid_t parent) {
  setpgid(0, 0);
  prctl(PR_SET_PDEATHSIG, SIGTERM);
  if (getppid() != parent) _exit(static_cast<int>(ExitCode::kComm));
  dup2(error_pipe, STDERR_FILENO);
  const auto threads = std::max<int64_t>(1, static_cast<int64_t>(std::thread::hardware_concurrency()) / num_ranks);
  setenv("OMP_NUM_THREADS", std::to_string(threads).c_str(), /*overwrite=*/0);
  setenv("OMP_WAIT_POLICY", "passive", /*overwrite=*/0);  // ranks that wait leave the cores to those that compute
  std::vector<char*> words;
  for (const std::string& word : command) words.push_back(const_cast<char*>(word.c_str()));
  words.push_back(nullptr);
  execvp(words[0], words.data());
  _exit(kNotFound);
}

// How one start of the ranks ended.
struct Ended {
  int code = 0;          // mpirun's, 128 + signal where one ended it
  int killed_rank = -1;  // by a signal; -1: none that mpirun speaks of
  std::string signal;    // that did, in mpirun's words: "signal 9 (Killed)"
};

// mpirun's words about a process that a signal ended: "mpirun noticed that process rank 1 with PID 7 on node n exited
// on signal 9 (Killed)."
void read_notice(const std::string& line, Ended* ended) {
  const std::string words = "noticed that process rank ", how = " exited on ";
  const size_t at = line.find(words);
  if (at == std::string::npos) return;
  ended->killed_rank = std::atoi(line.c_str() + at + words.size());
  const size_t signal = line.find(how, at);
  if (signal == std::string::npos) return;
  ended->signal = line.substr(signal + how.size());
  while (!ended->signal.empty() && (ended->signal.back() == '.' || ended->signal.back() == '\r'))
    ended->signal.pop_back();
}

// Passes standard error through, line by line, until the other end closes.
void relay_errors(int pipe, pid_t child, Ended* ended) {
  bool asked_to_stop = false;
  std::string line;
  for (;;) {
    if (stop_requested() && !asked_to_stop) {
      asked_to_stop = true;
      kill(child, SIGUSR1);  // mpirun hands it on to the ranks
    }
    pollfd waiting{pipe, POLLIN, 0};
    if (poll(&waiting, 1, /*ms=*/200) <= 0) continue;
    char bytes[4096];
    const ssize_t count = read(pipe, bytes, sizeof bytes);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return;
    std::cerr.write(bytes, count).flush();
    for (ssize_t i = 0; i < count; ++i) {
      if (bytes[i] != '\n') {
        line += bytes[i];
        continue;
      }
      read_notice(line, ended);
      line.clear();
    }
  }
}

Ended start_and_watch(int64_t num_ranks, const std::vector<std::string>& arguments) {
  const std::vector<std::string> command = mpirun_command(num_ranks, arguments);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw IoError("no pipe for the ranks' errors: {}.", std::strerror(errno));
  const pid_t parent = getpid(), child = fork();
  if (child < 0) throw IoError("mpirun cannot be started: {}.", std::strerror(errno));
  if (child == 0) become(command, num_ranks, ends[1], parent);
  close(ends[1]);
  Ended ended;
  relay_errors(ends[0], child, &ended);
  close(ends[0]);
  if (terminal_columns() > 0) std::cerr << "\r\x1b[K" << std::flush;  // the bar of a rank that is gone
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  ended.code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (ended.code == kNotFound)
    throw ConfigError("train.ranks = {}: mpirun is not on the PATH. Install Open MPI, or set train.ranks = 1.",
                      num_ranks);
  return ended;
}

// What was lost, where starting again may help; empty: the ranks' exit code is the last word.
std::string what_was_lost(const Ended& ended) {
  if (ended.killed_rank >= 0)
    return format("rank {} was killed{}", ended.killed_rank, ended.signal.empty() ? "" : " by " + ended.signal);
  if (ended.code == static_cast<int>(ExitCode::kComm)) return "a rank lost the others";
  if (ended.code >= 128) return format("mpirun ended with code {}", ended.code);
  return "";
}

// What the ranks that were started at `began` left in the run directory; nothing: they did not get that far.
std::optional<RunStatus> status_since(const Config& config, double began) {
  const std::optional<RunStatus> status = read_run_status(config.run_dir() + "/status.json");
  return status && status->started >= began ? status : std::nullopt;
}

// checkpoint.resume = never or PATH was the first start's: the next goes on with what that one has saved since.
bool next_start_resumes(const Config& config, double began) {
  const std::optional<RunStatus> status = status_since(config, began);
  return status && (config.checkpoint.resume == "never" || status->saved_stage >= 0);
}

// Whether that start got further than where it began, so that what ended it is no cause that comes at once again.
bool made_progress(const Config& config, double began) {
  const std::optional<RunStatus> status = status_since(config, began);
  return status && status->progress >= began;
}

// A pause that grows, against a cause that needs time to pass; then until the last of the ranks has let go of the run
// directory. False: a stop was requested meanwhile.
bool wait_before_restart(const Config& config, double pause_s) {
  constexpr double kLongestForLock = 60;
  const Stopwatch watch;
  const std::string lock = config.run_dir() + "/lock";
  while (watch.seconds() < pause_s || (is_locked(lock) && watch.seconds() < pause_s + kLongestForLock)) {
    if (stop_requested()) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(50));
  }
  return true;
}

// logs/launcher.log keeps the restarts, once there is such a folder.
void keep_log(const Config& config) {
  const std::string logs = config.run_dir() + "/logs";
  if (!file_exists(logs)) return;
  set_log_file(logs + "/launcher.log");
  set_log_context("launcher");
}

}  // namespace

int run_ranks(const Config& config, std::vector<std::string> arguments) {
  constexpr double kFirstPause = 1, kLongestPause = 60;  // seconds; none after a start that made progress
  install_stop_handlers();
  bool resumes = config.checkpoint.resume == "auto";
  double next_pause_s = kFirstPause;
  for (int64_t restart = 0;; ++restart) {
    const double began = seconds_since_epoch();
    const Ended ended = start_and_watch(config.train.ranks, arguments);
    const std::string lost = what_was_lost(ended);
    if (lost.empty()) return ended.code;
    keep_log(config);
    const double pause_s = made_progress(config, began) ? 0 : next_pause_s;
    next_pause_s = pause_s > 0 ? std::min(2 * pause_s, kLongestPause) : kFirstPause;
    bool again = restart < config.train.max_restarts && !stop_requested();
    if (again) {
      log_warning("{}; restart {} of {} (train.max_restarts) in {} s, from the newest checkpoint", lost, restart + 1,
                  config.train.max_restarts, pause_s);
      again = wait_before_restart(config, pause_s);
    }
    if (!again)
      throw CommError(
          "{}; the others were ended with it{}. See logs/ in the run directory, and run the same command again: it "
          "goes "
          "on from the last checkpoint.",
          lost, restart > 0 ? format(" (after {} restart{})", restart, restart > 1 ? "s" : "") : "");
    if (!resumes && next_start_resumes(config, began)) {
      resumes = true;
      arguments.push_back("--checkpoint.resume=auto");
    }
  }
}

}  // namespace temper
