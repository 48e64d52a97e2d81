// The table: one row a key, with where it lives, its range, unit and help. Parser, overrides, --help, dump and
// docs/configuration.md are loops over it. Internal to config.
#pragma once
#include <array>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "config/config.h"
#include "config/value.h"

namespace temper {

// One of a few words; unset only where the struct holds an optional.
struct ChoiceField {
  std::span<const std::string_view> names;
  std::function<std::optional<size_t>()> get;
  std::function<void(size_t)> set;
};

using Field =
    std::variant<bool*, int64_t*, double*, std::string*, std::optional<bool>*, std::vector<std::string>*,
                 std::vector<double>*, std::array<double, 2>*, std::map<std::string, RejectionBound>*, ChoiceField>;

struct Range {
  double low = -std::numeric_limits<double>::infinity();
  double high = std::numeric_limits<double>::infinity();
  bool open_low = false;  // low itself is not allowed
  bool open_high = false;
  bool zero_is_off = false;  // 0 is allowed beside the rest

  bool contains(double value) const;
  std::string text() const;  // "in [0, 1]"; empty if everything is allowed
};

struct KeySpec {
  std::string name;  // "algo.clip_ratio_low"
  std::function<Field(Sections&)> field;
  std::string help;
  std::string unit_text;
  Range range;
  std::vector<std::string> words;  // of a string or list of strings: what it may hold; empty: anything
  std::string default_note;        // what the default means, where its value does not say it
  bool for_run = false;            // holds for the whole run: a stage cannot have its own

  KeySpec& unit(std::string_view text);
  KeySpec& at_least(double low);
  KeySpec& above(double low);
  KeySpec& between(double low, double high);
  KeySpec& below(double high);
  KeySpec& off_or_above(double low);
  KeySpec& one_of(std::vector<std::string> allowed);
  KeySpec& by_default(std::string_view note);
  KeySpec& whole_run();

  std::string type_text() const;     // "integer", "list of strings", …
  std::string allowed_text() const;  // "0 or greater", "one of grpo, rloo, …"
  std::string default_text() const;
};

struct SectionSpec {
  std::string name;
  std::string help;
};

const std::vector<SectionSpec>& section_table();
const std::vector<KeySpec>& key_table();
const KeySpec* find_key(std::string_view name);

// Sets the key from a value. Nothing, or what is wrong: "algo.lam = 2 is out of range. Allowed: in [0, 1]."
std::optional<std::string> assign(const KeySpec& key, const Value& value, Sections* sections);
// The key's present value as TOML; nothing if it is unset (an optional, an empty model.init.family).
std::optional<std::string> field_text(const KeySpec& key, const Sections& sections);

// "unknown key algo.epsilon_high: here it is algo.clip_ratio_high", or the nearest key.
std::string unknown_key_message(std::string_view name);

}  // namespace temper
