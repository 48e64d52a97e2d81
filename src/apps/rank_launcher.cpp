#include "apps/rank_launcher.h"

#include <fcntl.h>
#include <poll.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <iostream>
#include <thread>

#include "core/error.h"
#include "core/interrupt.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr int kNotFound = 127;

std::vector<std::string> mpirun_command(int64_t num_ranks, const std::vector<std::string>& arguments) {
  std::vector<std::string> command = {"mpirun",  "-n",   std::to_string(num_ranks), "--bind-to", "none",
                                      "--stdin", "none", "--oversubscribe"};
  if (geteuid() == 0) command.emplace_back("--allow-run-as-root");
  command.push_back(std::filesystem::read_symlink("/proc/self/exe"));
  command.emplace_back("train");
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

// The rank in mpirun's own words about a process that a signal ended; -1: it does not say.
int rank_that_was_killed(const std::string& line) {
  const std::string words = "noticed that process rank ";
  const size_t at = line.find(words);
  return at == std::string::npos ? -1 : std::atoi(line.c_str() + at + words.size());
}

// Passes standard error through, line by line, until the other end closes; returns the rank that was killed, or -1.
int relay_errors(int pipe, pid_t child) {
  int killed = -1;
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
    if (count <= 0) return killed;
    std::cerr.write(bytes, count).flush();
    for (ssize_t i = 0; i < count; ++i) {
      if (bytes[i] != '\n') {
        line += bytes[i];
        continue;
      }
      const int rank = rank_that_was_killed(line);
      if (rank >= 0) killed = rank;
      line.clear();
    }
  }
}

}  // namespace

int run_ranks(int64_t num_ranks, const std::vector<std::string>& arguments) {
  install_stop_handlers();
  const std::vector<std::string> command = mpirun_command(num_ranks, arguments);
  int ends[2];
  if (pipe2(ends, O_CLOEXEC) != 0) throw IoError("no pipe for the ranks' errors: {}.", std::strerror(errno));
  const pid_t parent = getpid(), child = fork();
  if (child < 0) throw IoError("mpirun cannot be started: {}.", std::strerror(errno));
  if (child == 0) become(command, num_ranks, ends[1], parent);
  close(ends[1]);
  const int killed = relay_errors(ends[0], child);
  close(ends[0]);
  int status = 0;
  while (waitpid(child, &status, 0) < 0 && errno == EINTR) {
  }
  const int code = WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
  if (code == kNotFound)
    throw ConfigError("train.ranks = {}: mpirun is not on the PATH. Install Open MPI, or set train.ranks = 1.",
                      num_ranks);
  if (killed >= 0)
    throw CommError(
        "rank {} was killed from outside; the others were ended with it. See logs/ in the run directory, and"
        " run the same command again: it goes on from the last checkpoint.",
        killed);
  if (code >= 128) throw CommError("mpirun ended with code {}. Its message stands above.", code);
  return code;
}

}  // namespace temper
