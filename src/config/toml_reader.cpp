// The only file that sees the TOML library. Its 3.3 asserts (and without assertions assumes) that a table's header
// begins with a key, which a broken file does not: here a failed assertion is an exception like its other errors.
#undef NDEBUG
namespace temper::detail {
struct TomlAssertion {};
[[noreturn]] inline void throw_toml_assertion() { throw TomlAssertion(); }
}  // namespace temper::detail
#define TOML_ASSERT(condition) ((condition) ? void() : ::temper::detail::throw_toml_assertion())
#include <toml++/toml.h>

#include <cctype>
#include <charconv>

#include "config/table.h"
#include "config/value.h"
#include "core/error.h"
#include "core/format.h"

namespace temper {
namespace {

Value to_value(const toml::node& node) {
  if (const auto* flag = node.as_boolean()) return {flag->get()};
  if (const auto* number = node.as_integer()) return {number->get()};
  if (const auto* number = node.as_floating_point()) return {number->get()};
  if (const auto* text = node.as_string()) return {text->get()};
  if (const auto* array = node.as_array()) {
    Value::List items;
    for (const toml::node& item : *array) items.push_back(to_value(item));
    return {std::move(items)};
  }
  if (const auto* table = node.as_table()) {
    Value::Table rows;
    for (const auto& [key, item] : *table) rows.emplace_back(std::string(key.str()), to_value(item));
    return {std::move(rows)};
  }
  std::ostringstream text;
  text << toml::node_view<const toml::node>(node);
  return {OtherValue{text.str()}};
}

bool is_section_path(const std::string& path) {
  for (const KeySpec& key : key_table())
    if (key.name.starts_with(path + ".")) return true;
  return false;
}

// Descends until a path is a key of the table, or is no table. `place` maps a node to what messages begin with.
template <class Place>
void flatten(const toml::table& table, const std::string& prefix, const Place& place, std::vector<Setting>* settings) {
  for (const auto& [key, node] : table) {
    const std::string path = prefix + std::string(key.str());
    const toml::table* inner = node.as_table();
    if (inner && !find_key(path) && (!inner->empty() || is_section_path(path)))
      flatten(*inner, path + ".", place, settings);
    else
      settings->push_back({path, to_value(node), place(node)});
  }
}

bool usable_as_folder(std::string_view name) {
  for (const char c : name)
    if (!std::isalnum(static_cast<unsigned char>(c)) && c != '_' && c != '-') return false;
  return !name.empty();
}

// The value of an override. Strings need no quotes there, lists no brackets.
Value parse_value(const KeySpec& key, const std::string& text) {
  Sections scratch;
  const Field field = key.field(scratch);
  const bool is_text = std::holds_alternative<std::string*>(field) || std::holds_alternative<ChoiceField>(field);
  const bool quoted = text.starts_with('"') || text.starts_with('\'');
  if (is_text && !quoted) return {text};
  if (std::holds_alternative<std::vector<std::string>*>(field) && !text.starts_with('[')) {
    Value::List words;
    for (size_t begin = 0; begin < text.size();) {
      const size_t comma = std::min(text.find(',', begin), text.size());
      words.push_back({text.substr(begin, comma - begin)});
      begin = comma + 1;
    }
    return {std::move(words)};
  }
  const bool is_list =
      std::holds_alternative<std::vector<double>*>(field) || std::holds_alternative<std::array<double, 2>*>(field);
  const std::string toml = is_list && !text.starts_with('[') ? "[" + text + "]" : text;
  try {
    const toml::table table = toml::parse("value = " + toml);
    if (table.size() == 1 && table.contains("value")) return to_value(*table.get("value"));
  } catch (const toml::parse_error&) {
  } catch (const detail::TomlAssertion&) {
  }
  double number = 0;  // ".5", which TOML does not take
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error == std::errc() && end == text.data() + text.size()) return {number};
  return {text};
}

}  // namespace

ParsedFile read_toml(std::string_view text, const std::string& origin, std::vector<std::string>* errors) {
  toml::table root;
  try {
    root = toml::parse(text, origin);
  } catch (const toml::parse_error& error) {
    throw ConfigError(
        "{}:{}: not valid TOML at column {}: {}. Correct the line; strings need quotes, keys are written"
        " key = value.",
        origin, error.source().begin.line, error.source().begin.column, error.description());
  } catch (const detail::TomlAssertion&) {
    throw ConfigError(
        "{}: not valid TOML: a table's header does not begin with a name. Write [section], or [\"a name\"] with "
        "quotes.",
        origin);
  }
  const auto place = [&origin](const toml::node& node) { return format("{}:{}", origin, node.source().begin.line); };
  ParsedFile file;
  if (const toml::node* node = root.get("stage")) {
    const toml::array* stages = node->as_array();
    if (!stages || stages->empty() || !stages->is_homogeneous(toml::node_type::table)) {
      errors->push_back(
          format("{}: stage must be an array of tables. Write [[stage]] above each stage.", place(*node)));
    } else {
      for (const toml::node& item : *stages) {
        const toml::table& table = *item.as_table();
        StageSettings stage;
        stage.place = place(item);
        if (const toml::node* name = table.get("name")) {
          stage.name = name->value_or(std::string());
          if (!name->is_string() || !usable_as_folder(stage.name))
            errors->push_back(
                format("{}: stage.name = {} must be a string of letters, digits, _ and -: it names a folder.",
                       place(*name), toml_text(to_value(*name))));
        }
        flatten(table, "", place, &stage.settings);
        std::erase_if(stage.settings, [](const Setting& setting) { return setting.key == "name"; });
        file.stages.push_back(std::move(stage));
      }
    }
    root.erase("stage");
  }
  flatten(root, "", place, &file.root);
  return file;
}

Override read_override(std::string_view text, std::vector<std::string>* errors) {
  Override result;
  const std::string place = (text.starts_with("--") ? "" : "--") + std::string(text);
  const size_t equals = place.find('=');
  if (equals == std::string::npos) {
    errors->push_back(format("{}: no value. Write {}=VALUE.", place, place));
    return result;
  }
  std::string path = place.substr(2, equals - 2);
  const std::string value = place.substr(equals + 1);
  if (path.starts_with("stage.")) {
    const size_t dot = path.find('.', 6);
    if (dot == std::string::npos) {
      errors->push_back(format("{}: no key. Write --stage.NAME.section.key=VALUE.", place));
      return result;
    }
    result.stage = path.substr(6, dot - 6);
    path = path.substr(dot + 1);
  }
  if (const KeySpec* key = find_key(path)) {
    result.settings.push_back({path, parse_value(*key, value), place});
    return result;
  }
  if (is_section_path(path)) {  // a table at once: algo.overlong_buffer={len = 64}
    try {
      const toml::table table = toml::parse("value = " + value);
      if (const toml::node* node = table.get("value"); node && node->is_table() && table.size() == 1) {
        flatten(
            *node->as_table(), path + ".", [&](const toml::node&) { return place; }, &result.settings);
        return result;
      }
    } catch (const toml::parse_error&) {
    } catch (const detail::TomlAssertion&) {
    }
    errors->push_back(format("{}: {} is a table. Write --{}.KEY=VALUE.", place, path, path));
    return result;
  }
  result.settings.push_back({path, Value{value}, place});
  return result;
}

}  // namespace temper
