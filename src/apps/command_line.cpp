#include "apps/command_line.h"

#define CXXOPTS_VECTOR_DELIMITER '\0'  // "--stop ," is one stop string; options are repeated, not joined
#include <algorithm>
#include <charconv>
#include <cxxopts.hpp>
#include <iostream>

#include "config/load.h"
#include "config/table.h"
#include "core/error.h"
#include "core/log.h"
#include "core/nearest_name.h"

namespace temper {

struct CommandLine::State {
  State(std::string_view command_name, std::string_view about, std::string_view usage_text)
      : command(command_name), usage(usage_text), options("temper " + command, std::string(about)) {}

  std::string command;
  std::string usage;
  cxxopts::Options options;
  cxxopts::ParseResult result;
  std::vector<std::string> names;  // declared options
  std::vector<std::string> positionals;
  size_t num_required = 0;
  bool takes_overrides = false;
  std::vector<std::string> overrides;

  std::string how() const { return format("Usage: temper {} {}", command, usage); }

  void declare(const std::string& name, const std::string& help, std::shared_ptr<cxxopts::Value> value,
               const std::string& placeholder = "") {
    options.add_options()(name, help, std::move(value), placeholder);
    names.push_back(name.substr(name.find(',') + 1));
  }

  [[noreturn]] void refuse_unmatched(const std::string& argument) const {
    if (!argument.starts_with("-")) throw ConfigError("unexpected argument '{}'. {}", argument, how());
    const std::string name = argument.substr(std::min(argument.find_first_not_of('-'), argument.size()),
                                             argument.find('=') - argument.find_first_not_of('-'));
    if (takes_overrides) {
      const std::string message = unknown_key_message(name);
      if (message.find("here it is") != std::string::npos)
        throw ConfigError("unknown option --{}: {}. Write --{}=VALUE.", name,
                          message.substr(message.find("here it is")), message.substr(message.rfind(' ') + 1));
    }
    throw ConfigError("unknown option --{}: the nearest is --{}. temper {} --help lists all.", name,
                      nearest_name(name, names), command);
  }

  bool is_positional(const std::string& name) const {
    return std::find(positionals.begin(), positionals.end(), name) != positionals.end();
  }
  std::string option_name(const std::string& name) const { return is_positional(name) ? name : "--" + name; }
};

CommandLine::CommandLine(std::string_view command, std::string_view about, std::string_view usage)
    : state_(std::make_unique<State>(command, about, usage)) {
  state_->options.custom_help(state_->usage);
  state_->options.positional_help("");
  state_->options.set_width(110);
  state_->options.allow_unrecognised_options();
}

CommandLine::~CommandLine() = default;

void CommandLine::add_flag(const std::string& name, const std::string& help) {
  state_->declare(name, help, cxxopts::value<bool>());
}

void CommandLine::add_option(const std::string& name, const std::string& placeholder, const std::string& help) {
  state_->declare(name, help, cxxopts::value<std::vector<std::string>>(), placeholder);
}

void CommandLine::add_option(const std::string& name, const std::string& placeholder, const std::string& help,
                             const std::string& default_value) {
  state_->declare(name, help, cxxopts::value<std::vector<std::string>>()->default_value(default_value), placeholder);
}

void CommandLine::add_positional(const std::string& name, bool required) {
  state_->positionals.push_back(name);
  if (required) state_->num_required = state_->positionals.size();
}

void CommandLine::add_config_overrides() { state_->takes_overrides = true; }

bool CommandLine::parse(int argc, char** argv) {
  State& s = *state_;
  add_option("log-level", "LEVEL", "debug, info, warning, error or off", "info");
  s.declare("h,help", "print this", cxxopts::value<bool>());
  for (const std::string& name : s.positionals)
    s.options.add_options("arguments")(name, "", cxxopts::value<std::string>());
  s.options.parse_positional(s.positionals);

  std::vector<const char*> rest;
  for (int i = 0; i < argc; ++i) {
    const std::string argument = argv[i];
    const bool is_override = s.takes_overrides && i > 0 && argument.starts_with("--") &&
                             argument.substr(0, argument.find('=')).find('.') != std::string::npos;
    if (!is_override) {
      rest.push_back(argv[i]);
    } else if (argument.find('=') == std::string::npos) {
      throw ConfigError("{} has no value. Write {}=VALUE.", argument, argument);
    } else {
      s.overrides.push_back(argument);
    }
  }
  try {
    s.result = s.options.parse(static_cast<int>(rest.size()), rest.data());
  } catch (const cxxopts::exceptions::exception& error) {
    throw ConfigError("{}. {}", error.what(), s.how());
  }
  if (flag("help")) {
    std::cout << s.options.help({""});
    if (s.takes_overrides)
      std::cout << "\nConfiguration keys, each also in the file and as --stage.NAME.section.key=value for one stage:\n"
                << config_help();
    return false;
  }
  set_log_level(parse_log_level(text("log-level")));
  for (const std::string& argument : s.result.unmatched()) s.refuse_unmatched(argument);
  for (size_t i = 0; i < s.num_required; ++i)
    if (!given(s.positionals[i])) throw ConfigError("{} is missing. {}", s.positionals[i], s.how());
  return true;
}

bool CommandLine::flag(const std::string& name) const { return state_->result[name].as<bool>(); }

bool CommandLine::given(const std::string& name) const { return state_->result.count(name) > 0; }

std::string CommandLine::text(const std::string& name) const {
  const std::vector<std::string> values = texts(name);
  if (values.empty()) throw ConfigError("{} is missing. {}", state_->option_name(name), state_->how());
  return values.back();
}

std::vector<std::string> CommandLine::texts(const std::string& name) const {
  const cxxopts::OptionValue& value = state_->result[name];
  if (state_->is_positional(name))
    return value.count() > 0 ? std::vector{value.as<std::string>()} : std::vector<std::string>();
  return value.count() > 0 || value.has_default() ? value.as<std::vector<std::string>>() : std::vector<std::string>();
}

std::string CommandLine::one_of(const std::string& name, const std::vector<std::string>& allowed) const {
  const std::string value = text(name);
  if (std::find(allowed.begin(), allowed.end(), value) == allowed.end())
    throw ConfigError("{}={} is not known. Allowed: {}.", state_->option_name(name), value, join(allowed));
  return value;
}

namespace {

template <class Number>
Number parse_number(const std::string& option, const std::string& value, Number low, Number high,
                    std::string_view kind) {
  Number number{};
  const auto [end, error] = std::from_chars(value.data(), value.data() + value.size(), number);
  if (error != std::errc() || end != value.data() + value.size())
    throw ConfigError("{}={} is not {}.", option, value, kind);
  if (!(number >= low && number <= high)) {
    const bool bounded = high < std::numeric_limits<Number>::max();
    throw ConfigError("{}={} is out of range. Allowed: {}.", option, value,
                      bounded ? format("{} to {}", low, high) : format("{} or greater", low));
  }
  return number;
}

}  // namespace

int64_t CommandLine::integer(const std::string& name, int64_t low, int64_t high) const {
  return parse_number(state_->option_name(name), text(name), low, high, "an integer");
}

double CommandLine::number(const std::string& name, double low, double high) const {
  return parse_number(state_->option_name(name), text(name), low, high, "a number");
}

const std::vector<std::string>& CommandLine::overrides() const { return state_->overrides; }

std::string typed_command(int argc, char** argv) {
  std::string text = "temper";
  for (int i = 0; i < argc; ++i) {
    const std::string word = argv[i];
    const bool plain = word.find_first_of(" '\"\\$&|;<>()[]{}*?#~\t\n") == std::string::npos && !word.empty();
    text += " ";
    if (plain) {
      text += word;
      continue;
    }
    text += '\'';
    for (const char c : word) text += c == '\'' ? std::string("'\\''") : std::string(1, c);
    text += '\'';
  }
  return text;
}

}  // namespace temper
