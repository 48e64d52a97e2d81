// One value into one field, with everything that can be wrong about it; and back to text.
#include <algorithm>
#include <cmath>
#include <set>

#include "config/table.h"
#include "core/format.h"

namespace temper {
namespace {

std::string kind_of(const Value& value) {
  static constexpr std::string_view kKinds[] = {"a boolean", "an integer", "a number",      "a string",
                                                "a list",    "a table",    "a date or time"};
  return std::string(kKinds[value.data.index()]);
}

std::optional<double> as_number(const Value& value) {
  if (const auto* number = std::get_if<int64_t>(&value.data)) return static_cast<double>(*number);
  if (const auto* number = std::get_if<double>(&value.data)) return *number;
  return std::nullopt;
}

struct Assigner {
  const KeySpec& key;
  const Value& value;

  std::string says() const { return format("{} = {}", key.name, toml_text(value)); }

  std::string wrong_type() const {
    const std::string allowed = key.allowed_text();
    return format("{} is {}. Expected: {}{}{}.", says(), kind_of(value), key.type_text(), allowed.empty() ? "" : ", ",
                  allowed);
  }
  std::string out_of_range() const { return format("{} is out of range. Allowed: {}.", says(), key.range.text()); }

  std::optional<std::string> operator()(bool* field) const {
    const auto* flag = std::get_if<bool>(&value.data);
    if (!flag) return wrong_type();
    *field = *flag;
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::optional<bool>* field) const {
    const auto* flag = std::get_if<bool>(&value.data);
    if (!flag) return wrong_type();
    *field = *flag;
    return std::nullopt;
  }
  std::optional<std::string> operator()(int64_t* field) const {
    const auto* number = std::get_if<int64_t>(&value.data);
    if (!number) return wrong_type();
    if (!key.range.contains(static_cast<double>(*number))) return out_of_range();
    *field = *number;
    return std::nullopt;
  }
  std::optional<std::string> operator()(double* field) const {
    const auto number = as_number(value);
    if (!number) return wrong_type();
    if (!std::isfinite(*number))
      return format("{} is not finite. Give a number{}{}.", says(), key.range.text().empty() ? "" : ", ",
                    key.range.text());
    if (!key.range.contains(*number)) return out_of_range();
    *field = *number;
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::string* field) const {
    const auto* text = std::get_if<std::string>(&value.data);
    if (!text) return wrong_type();
    if (!key.words.empty() && std::find(key.words.begin(), key.words.end(), *text) == key.words.end())
      return format("{} is not known. Allowed: {}.", says(), join(key.words));
    *field = *text;
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::vector<std::string>* field) const {
    const auto* list = std::get_if<Value::List>(&value.data);
    if (!list) return wrong_type();
    std::vector<std::string> texts;
    for (const Value& item : *list) {
      const auto* text = std::get_if<std::string>(&item.data);
      if (!text) return wrong_type();
      if (!key.words.empty() && std::find(key.words.begin(), key.words.end(), *text) == key.words.end())
        return format("{}: {} is not known. Allowed: {}.", says(), toml_text(*text), join(key.words));
      texts.push_back(*text);
    }
    *field = std::move(texts);
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::vector<double>* field) const {
    const auto* list = std::get_if<Value::List>(&value.data);
    if (!list) return wrong_type();
    std::vector<double> numbers;
    for (const Value& item : *list) {
      const auto number = as_number(item);
      if (!number) return wrong_type();
      if (!std::isfinite(*number) || !key.range.contains(*number))
        return format("{}: {} is out of range. Allowed: {}.", says(), toml_text(item),
                      key.range.text().empty() ? "finite numbers" : key.range.text());
      numbers.push_back(*number);
    }
    *field = std::move(numbers);
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::array<double, 2>* field) const {
    std::vector<double> numbers;
    if (auto error = (*this)(&numbers)) return error;
    if (numbers.size() != 2) return format("{} has {} entries. Expected: {}.", says(), numbers.size(), key.type_text());
    *field = {numbers[0], numbers[1]};
    return std::nullopt;
  }
  std::optional<std::string> operator()(const ChoiceField& field) const {
    const auto* text = std::get_if<std::string>(&value.data);
    if (!text) return wrong_type();
    const auto found = std::find(field.names.begin(), field.names.end(), *text);
    if (found == field.names.end()) return format("{} is not known. Allowed: {}.", says(), join(field.names));
    field.set(static_cast<size_t>(found - field.names.begin()));
    return std::nullopt;
  }
  std::optional<std::string> operator()(std::map<std::string, RejectionBound>* field) const;
};

const std::set<std::string>& rejection_tests() {
  static const std::set<std::string> kTests = {"token_k1",    "token_k2",   "token_k3",    "seq_sum_k1",
                                               "seq_sum_k2",  "seq_sum_k3", "seq_mean_k1", "seq_mean_k2",
                                               "seq_mean_k3", "seq_max_k2", "seq_max_k3"};
  return kTests;
}

std::optional<std::string> Assigner::operator()(std::map<std::string, RejectionBound>* field) const {
  const auto* table = std::get_if<Value::Table>(&value.data);
  if (!table) return wrong_type();
  std::map<std::string, RejectionBound> bounds;
  for (const auto& [test, item] : *table) {
    const std::string entry = format("{}.{} = {}", key.name, test, toml_text(item));
    if (!rejection_tests().contains(test))
      return format("{} is no rejection test. Allowed: {}.", entry, join(rejection_tests()));
    const bool is_k1 = test.ends_with("k1");
    const auto* pair = std::get_if<Value::List>(&item.data);
    const auto single = as_number(item);
    std::optional<RejectionBound> bound;
    if (is_k1 && pair && pair->size() == 2 && as_number((*pair)[0]) && as_number((*pair)[1]))
      bound = RejectionBound{*as_number((*pair)[0]), *as_number((*pair)[1])};
    else if (is_k1 && single && *single > 0)
      bound = RejectionBound{1 / *single, *single};
    else if (!is_k1 && single)
      bound = RejectionBound{0, *single};
    const bool in_range = bound && std::isfinite(bound->lo) && std::isfinite(bound->hi) &&
                          (is_k1 ? bound->lo > 0 && bound->lo <= bound->hi : bound->hi >= 0);
    if (!in_range)
      return format("{} is not a bound. Allowed: {}.", entry,
                    is_k1 ? "[low, high] with 0 < low <= high, or one number u of at least 1 for [1/u, u]"
                          : "a number, 0 or greater");
    bounds[test] = *bound;
  }
  *field = std::move(bounds);
  return std::nullopt;
}

struct Printer {
  std::optional<std::string> operator()(const bool* field) const { return *field ? "true" : "false"; }
  std::optional<std::string> operator()(const std::optional<bool>* field) const {
    if (!*field) return std::nullopt;
    return **field ? "true" : "false";
  }
  std::optional<std::string> operator()(const int64_t* field) const { return std::to_string(*field); }
  std::optional<std::string> operator()(const double* field) const { return toml_text(*field); }
  std::optional<std::string> operator()(const std::string* field) const { return toml_text(*field); }
  std::optional<std::string> operator()(const std::vector<std::string>* field) const {
    Value::List list;
    for (const std::string& text : *field) list.push_back({text});
    return toml_text(Value{std::move(list)});
  }
  std::optional<std::string> operator()(const std::vector<double>* field) const {
    Value::List list;
    for (const double number : *field) list.push_back({number});
    return toml_text(Value{std::move(list)});
  }
  std::optional<std::string> operator()(const std::array<double, 2>* field) const {
    return toml_text(Value{Value::List{{(*field)[0]}, {(*field)[1]}}});
  }
  std::optional<std::string> operator()(const ChoiceField& field) const {
    const auto index = field.get();
    if (!index) return std::nullopt;
    return toml_text(std::string(field.names[*index]));
  }
  std::optional<std::string> operator()(const std::map<std::string, RejectionBound>* field) const {
    Value::Table table;
    for (const auto& [test, bound] : *field) {
      if (test.ends_with("k1"))
        table.emplace_back(test, Value{Value::List{{bound.lo}, {bound.hi}}});
      else
        table.emplace_back(test, Value{bound.hi});
    }
    return toml_text(Value{std::move(table)});
  }
};

// The fields are only read; one accessor serves both directions.
Field readable_field(const KeySpec& key, const Sections& sections) {
  return key.field(const_cast<Sections&>(sections));
}

}  // namespace

std::optional<std::string> assign(const KeySpec& key, const Value& value, Sections* sections) {
  return std::visit(Assigner{key, value}, key.field(*sections));
}

std::optional<std::string> field_text(const KeySpec& key, const Sections& sections) {
  const Field field = readable_field(key, sections);
  if (const auto* text = std::get_if<std::string*>(&field); text && !key.words.empty() && (*text)->empty())
    return std::nullopt;
  return std::visit(Printer{}, field);
}

std::string KeySpec::type_text() const {
  static constexpr std::string_view kTypes[] = {"true or false",
                                                "integer",
                                                "number",
                                                "string",
                                                "true or false",
                                                "list of strings",
                                                "list of numbers",
                                                "list of two numbers",
                                                "table from test to bound",
                                                "string"};
  Sections scratch;
  return std::string(kTypes[field(scratch).index()]);
}

std::string KeySpec::allowed_text() const {
  Sections scratch;
  const Field here = field(scratch);
  if (const auto* choice = std::get_if<ChoiceField>(&here)) return "one of " + join(choice->names);
  if (!words.empty()) return "one of " + join(words);
  if (std::holds_alternative<std::map<std::string, RejectionBound>*>(here))
    return "tests " + join(rejection_tests()) + "; k1 takes [low, high] or one number, the others a number";
  return range.text();
}

std::string KeySpec::default_text() const {
  if (!default_note.empty()) return default_note;
  return field_text(*this, Sections()).value_or("none");
}

}  // namespace temper
