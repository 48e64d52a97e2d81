#include "core/process.h"

#include <sys/resource.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <sstream>

#include "core/format.h"

namespace temper {
namespace {

// /proc/PID/stat from field 3 on: the name before it may hold spaces and parentheses. Empty: no such process.
std::string process_fields(int64_t pid) {
  std::ifstream file(format("/proc/{}/stat", pid));
  std::string text;
  std::getline(file, text);
  const size_t name_end = text.rfind(')');
  return name_end == std::string::npos || name_end + 2 >= text.size() ? std::string() : text.substr(name_end + 2);
}

}  // namespace

std::string host_name() {
  char name[256] = "unknown";
  ::gethostname(name, sizeof name - 1);
  return name;
}

std::string slurm_job() {
  const char* number = std::getenv("SLURM_JOB_ID");
  return number == nullptr ? "" : number;
}

int64_t slurm_step_tasks() {
  const char* number = std::getenv("SLURM_STEP_NUM_TASKS");
  return number == nullptr ? 1 : std::strtoll(number, nullptr, 10);
}

char process_state(int64_t pid) {
  const std::string fields = process_fields(pid);
  return fields.empty() ? '?' : fields.front();
}

int64_t process_start_ticks(int64_t pid) {
  std::istringstream fields(process_fields(pid));
  std::string field;
  for (int number = 3; number <= 22; ++number) fields >> field;
  return fields ? std::strtoll(field.c_str(), nullptr, 10) : -1;
}

double process_cpu_s() {
  rusage used{};
  ::getrusage(RUSAGE_SELF, &used);
  const auto seconds = [](const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) / 1e6;
  };
  return seconds(used.ru_utime) + seconds(used.ru_stime);
}

void raise_file_limit() {
  rlimit limit{};
  if (::getrlimit(RLIMIT_NOFILE, &limit) != 0 || limit.rlim_cur >= limit.rlim_max) return;
  limit.rlim_cur = limit.rlim_max;
  ::setrlimit(RLIMIT_NOFILE, &limit);
}

}  // namespace temper
