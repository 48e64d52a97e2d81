#include "algos/non_finite_json.h"

#include <cctype>
#include <cmath>
#include <cstdlib>

namespace temper {
namespace {

bool is_token_char(char c) { return std::isalnum(static_cast<unsigned char>(c)) || c == '+' || c == '-' || c == '.'; }

bool is_number(const std::string& token) {
  return token.find_first_not_of("+-.0123456789eE") == std::string::npos &&
         (std::isdigit(static_cast<unsigned char>(token[0])) || token[0] == '-');
}

bool is_non_finite(const std::string& token) {
  if (token == "NaN" || token == "Infinity" || token == "-Infinity") return true;
  if (!is_number(token)) return false;
  char* end = nullptr;
  const double value = std::strtod(token.c_str(), &end);
  return *end == '\0' && std::isinf(value);
}

}  // namespace

std::string mark_non_finite(std::string_view json) {
  std::string marked;
  marked.reserve(json.size());
  for (size_t i = 0; i < json.size();) {
    if (json[i] == '"') {
      size_t end = i + 1;
      while (end < json.size() && json[end] != '"') end += json[end] == '\\' ? 2 : 1;
      end = std::min(end + 1, json.size());
      marked.append(json.substr(i, end - i));
      i = end;
    } else if (is_token_char(json[i])) {
      size_t end = i;
      while (end < json.size() && is_token_char(json[end])) ++end;
      const std::string token(json.substr(i, end - i));
      if (is_non_finite(token))
        marked.append("\"").append(kNonFiniteMark).append(token).append("\"");
      else
        marked.append(token);
      i = end;
    } else {
      marked.push_back(json[i++]);
    }
  }
  return marked;
}

}  // namespace temper
