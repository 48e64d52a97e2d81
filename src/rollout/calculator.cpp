#include "rollout/calculator.h"

#include <muParser.h>

#include <cmath>
#include <cstdio>
#include <stdexcept>

#include "core/format.h"

namespace temper {
namespace {

constexpr const char* kBegin = "<calc>";
constexpr const char* kEnd = "</calc>";
constexpr size_t kLongestExpression = 1000;

}  // namespace

std::string calculate(const std::string& expression) {
  if (expression.find_first_not_of(" \t\n") == std::string::npos) throw std::runtime_error("no expression");
  if (expression.size() > kLongestExpression) throw std::runtime_error("too long");
  double value = 0;
  try {
    mu::Parser parser;
    parser.SetExpr(expression);
    value = parser.Eval();
  } catch (const mu::Parser::exception_type& error) {
    throw std::runtime_error(error.GetMsg());
  }
  if (!std::isfinite(value)) throw std::runtime_error("not a finite number");
  constexpr double kWholeNumbersEnd = 9007199254740992.0;  // 2^53
  if (std::floor(value) == value && std::abs(value) < kWholeNumbersEnd)
    return std::to_string(static_cast<int64_t>(value));
  char text[32];
  std::snprintf(text, sizeof text, "%.10g", value);
  return text;
}

const std::vector<std::string>& Calculator::turn_ends() const {
  static const std::vector<std::string> ends = {kEnd};
  return ends;
}

std::optional<std::string> Calculator::step(const std::string& turn) {
  const size_t begin = turn.rfind(kBegin), end = turn.rfind(kEnd);
  std::string result = "error: no <calc> before </calc>";
  if (begin != std::string::npos && end != std::string::npos && begin < end) {
    const size_t first = begin + std::string_view(kBegin).size();
    try {
      result = calculate(turn.substr(first, end - first));
    } catch (const std::runtime_error& error) {
      result = format("error: {}", error.what());
    }
  }
  return "<result>" + result + "</result>";
}

}  // namespace temper
