#include "config/value.h"

#include <charconv>
#include <cmath>

namespace temper {
namespace {

template <class... Cases>
struct Overloaded : Cases... {
  using Cases::operator()...;
};
template <class... Cases>
Overloaded(Cases...) -> Overloaded<Cases...>;

}  // namespace

std::string toml_text(double value) {
  if (std::isnan(value)) return "nan";
  if (std::isinf(value)) return value > 0 ? "inf" : "-inf";
  char digits[64];
  const auto end = std::to_chars(digits, digits + sizeof digits, value).ptr;
  std::string text(digits, end);
  if (text.find_first_of(".e") == std::string::npos) text += ".0";
  return text;
}

std::string toml_text(const std::string& value) {
  static constexpr char kHex[] = "0123456789ABCDEF";
  std::string text = "\"";
  for (const char c : value) {
    const auto byte = static_cast<unsigned char>(c);
    if (c == '"' || c == '\\') {
      text += '\\';
      text += c;
    } else if (c == '\n') {
      text += "\\n";
    } else if (c == '\t') {
      text += "\\t";
    } else if (byte < 0x20 || byte == 0x7F) {
      text += "\\u00";
      text += kHex[byte >> 4];
      text += kHex[byte & 15];
    } else {
      text += c;
    }
  }
  return text + "\"";
}

std::string toml_text(const Value& value) {
  const auto list = [](const Value::List& items) {
    std::string text = "[";
    for (const Value& item : items) text += (text.size() > 1 ? ", " : "") + toml_text(item);
    return text + "]";
  };
  const auto table = [](const Value::Table& rows) {
    std::string text = "{";
    for (const auto& [key, item] : rows) text += (text.size() > 1 ? ", " : "") + key + " = " + toml_text(item);
    return text + "}";
  };
  return std::visit(
      Overloaded{[](bool flag) -> std::string { return flag ? "true" : "false"; },
                 [](int64_t number) { return std::to_string(number); }, [](double number) { return toml_text(number); },
                 [](const std::string& text) { return toml_text(text); }, list, table,
                 [](const OtherValue& other) { return other.text; }},
      value.data);
}

}  // namespace temper
