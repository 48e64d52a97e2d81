// The five kinds of failure that end a command, each with its exit code (Slurm scripts decide by it), and TEMPER_CHECK
// for invariants. Throw them with a message that says what, where, which values, and what to do; catch them in main()
// only, at a thread's top, or for one documented retry.
#pragma once
#include <stdexcept>
#include <string>

#include "core/format.h"

namespace temper {

enum class ExitCode : int {
  kDone = 0,
  kConfig = 2,
  kIo = 3,
  kComm = 4,
  kFormat = 5,
  kNumerics = 6,
  kStopped = 75,  // stopped on request, checkpoint written: requeue
};

class Error : public std::runtime_error {
 public:
  Error(ExitCode exit_code, const std::string& message) : std::runtime_error(message), exit_code_(exit_code) {}
  ExitCode exit_code() const { return exit_code_; }

 private:
  ExitCode exit_code_;
};

#define TEMPER_ERROR_KIND(Name, code)                                                                 \
  class Name : public Error {                                                                         \
   public:                                                                                            \
    template <class... Args>                                                                          \
    explicit Name(std::string_view text, const Args&... args) : Error(code, format(text, args...)) {} \
  }

TEMPER_ERROR_KIND(ConfigError, ExitCode::kConfig);      // a setting, argument or combination that cannot work
TEMPER_ERROR_KIND(IoError, ExitCode::kIo);              // a file that cannot be read or written
TEMPER_ERROR_KIND(CommError, ExitCode::kComm);          // a peer that is gone, late or out of step
TEMPER_ERROR_KIND(FormatError, ExitCode::kFormat);      // a corrupt, truncated or foreign file
TEMPER_ERROR_KIND(NumericsError, ExitCode::kNumerics);  // a non-finite loss or gradient, a diverged run

#undef TEMPER_ERROR_KIND

// A broken invariant of ours: a bug, reported with its place. Always on.
class InvariantError : public std::logic_error {
  using std::logic_error::logic_error;
};

}  // namespace temper

#define TEMPER_CHECK(condition, ...)                                                                                 \
  do {                                                                                                               \
    if (!(condition))                                                                                                \
      throw ::temper::InvariantError(::temper::format("{}:{}: check failed: {}: {}", __FILE__, __LINE__, #condition, \
                                                      ::temper::format(__VA_ARGS__)));                               \
  } while (false)
