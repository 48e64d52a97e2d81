// The arguments of one subcommand: options are declared with placeholder (DIR, TOKENS, …), help and default, which
// --help shows; values are checked when they are taken. Whatever is wrong is a ConfigError that says what to write.
// --help and
// --log-level are there for every command.
#pragma once
#include <cstdint>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class CommandLine {
 public:
  // usage: what follows the name, "--model DIR [--decode]".
  CommandLine(std::string_view command, std::string_view about, std::string_view usage);
  ~CommandLine();
  CommandLine(const CommandLine&) = delete;
  CommandLine& operator=(const CommandLine&) = delete;

  void add_flag(const std::string& name, const std::string& help);
  void add_option(const std::string& name, const std::string& placeholder, const std::string& help);
  void add_option(const std::string& name, const std::string& placeholder, const std::string& help,
                  const std::string& default_value);
  // An argument without a name, in this order; `required` ones first.
  void add_positional(const std::string& name, bool required = true);
  // --section.key=value and --stage.NAME.section.key=value, listed by --help.
  void add_config_overrides();

  // False: --help was asked for and printed. Sets the log level. argv[0] is skipped.
  bool parse(int argc, char** argv);

  bool flag(const std::string& name) const;
  bool given(const std::string& name) const;  // an option or positional, by the user
  std::string text(const std::string& name) const;
  std::vector<std::string> texts(const std::string& name) const;  // of an option that may be repeated
  std::string one_of(const std::string& name, const std::vector<std::string>& allowed) const;
  int64_t integer(const std::string& name, int64_t low = 0, int64_t high = std::numeric_limits<int64_t>::max()) const;
  double number(const std::string& name, double low = 0, double high = std::numeric_limits<double>::infinity()) const;
  const std::vector<std::string>& overrides() const;

 private:
  struct State;
  std::unique_ptr<State> state_;
};

// "temper run a.toml …": the command as it was typed, with blanks and the like quoted. argv[0] is the subcommand.
std::string typed_command(int argc, char** argv);

}  // namespace temper
