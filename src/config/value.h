// A setting as written, before it is known what it sets: what the TOML reader gives and what the table takes. Internal
// to config. Plain values, no TOML library in sight.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

namespace temper {

// A date, which no key takes; kept as text for the message.
struct OtherValue {
  std::string text;
};

struct Value {
  using List = std::vector<Value>;
  using Table = std::vector<std::pair<std::string, Value>>;
  std::variant<bool, int64_t, double, std::string, List, Table, OtherValue> data;
};

struct Setting {
  std::string key;  // "algo.kl_coef", without the stage
  Value value;
  std::string place;  // "run.toml:12" or "--algo.kl_coef=x", what messages begin with
};

// As TOML writes it. Doubles keep all their digits and a point or exponent.
std::string toml_text(const Value& value);
std::string toml_text(double value);
std::string toml_text(const std::string& value);

struct StageSettings {
  std::string name;  // empty: to be named after its preset
  std::string place;
  std::vector<Setting> settings;
};

struct ParsedFile {
  std::vector<Setting> root;
  std::vector<StageSettings> stages;
};

// Flattens a TOML text to settings. Syntax errors end it (ConfigError with line and column); what is wrong with single
// entries (a section that is no table, a stage without a usable name) goes to `errors`.
ParsedFile read_toml(std::string_view text, const std::string& origin, std::vector<std::string>* errors);

// "section.key=value" → settings (several if the value is an inline table). A value that is no TOML is a string; for a
// list, words between commas.
struct Override {
  std::string stage;  // empty: every stage
  std::vector<Setting> settings;
};
Override read_override(std::string_view text, std::vector<std::string>* errors);

}  // namespace temper
