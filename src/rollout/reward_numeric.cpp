#include "rollout/reward_numeric.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <limits>
#include <utility>
#include <vector>

namespace temper {
namespace {

constexpr char kThin = '\x01';    // a thin or non-breaking space: separates thousands
constexpr char kOpaque = '\x02';  // \sqrt, \pi: something whose value we do not compute

constexpr double kNotANumber = std::numeric_limits<double>::quiet_NaN();

bool is_digit(char c) { return c >= '0' && c <= '9'; }
bool is_letter(char c) { return (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z'); }
bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }

// ---- One spelling for each thing
// ----------------------------------------------------------------------------------------------

// Longest first where one begins another.
constexpr std::pair<std::string_view, std::string_view> kSpellings[] = {
    {"\u2212", "-"},    {"\uff0d", "-"},    {"\u00d7", "*"},    {"\u00b7", "*"},    {"\u20ac", "$"},
    {"\u00a3", "$"},    {"\u00a5", "$"},    {"\u20b9", "$"},    {"\u00a0", "\x01"}, {"\u2009", "\x01"},
    {"\u202f", "\x01"}, {"\u2007", "\x01"}, {"\u00bd", " 1/2"}, {"\u00bc", " 1/4"}, {"\u00be", " 3/4"},
    {"\u2153", " 1/3"}, {"\u2154", " 2/3"}, {"\u2044", "/"},    {"{,}", ","},       {"\\,", "\x01"},
    {"\\!", ""},        {"\\;", " "},       {"\\:", " "},       {"\\ ", " "},       {"\\%", "%"},
    {"\\$", "$"},       {"\\#", "#"},       {"**", ""},         {"__", ""},         {"`", ""},
};

std::string normalised(std::string_view text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size();) {
    bool replaced = false;
    for (const auto& [spelling, plain] : kSpellings)
      if (text.substr(i, spelling.size()) == spelling) {
        out += plain;
        i += spelling.size();
        replaced = true;
        break;
      }
    if (replaced) continue;
    if (text[i] == '\\' && i + 1 < text.size() && is_letter(text[i + 1])) {
      size_t end = i + 1;
      while (end < text.size() && is_letter(text[end])) ++end;
      const std::string_view command = text.substr(i + 1, end - i - 1);
      if (command == "frac" || command == "dfrac" || command == "tfrac" || command == "cfrac")
        out += "\\frac";
      else if (command == "boxed" || command == "fbox")
        out += "\\boxed";
      else if (command == "times" || command == "cdot")
        out += '*';
      else if (command == "sqrt" || command == "pi")
        out += kOpaque;
      else
        out += ' ';
      i = end;
      continue;
    }
    out += text[i++];
  }
  return out;
}

// ---- Numbers in normalised text
// -----------------------------------------------------------------------------------------------

struct Found {
  Number number;
  size_t begin = 0, end = 0;
};

std::vector<Found> scan(std::string_view text);

size_t skip_spaces(std::string_view text, size_t i) {
  while (i < text.size() && (is_space(text[i]) || text[i] == kThin)) ++i;
  return i;
}

size_t end_of_digits(std::string_view text, size_t i) {
  while (i < text.size() && is_digit(text[i])) ++i;
  return i;
}

double to_double(const std::string& digits) { return std::strtod(digits.c_str(), nullptr); }

// Digits with thousands separators at i; `digits` gets them without. A separator counts between one to three digits and
// exactly three.
size_t read_grouped(std::string_view text, size_t i, std::string& digits) {
  size_t end = end_of_digits(text, i);
  digits.assign(text.substr(i, end - i));
  if (digits.empty() || digits.size() > 3) return end;
  while (end < text.size() && (text[end] == ',' || text[end] == kThin) && end_of_digits(text, end + 1) == end + 4) {
    digits += text.substr(end + 1, 3);
    end += 4;
  }
  return end;
}

// The argument of \frac at i: {…} or one digit.
std::optional<double> read_argument(std::string_view text, size_t& i) {
  i = skip_spaces(text, i);
  if (i < text.size() && is_digit(text[i])) return text[i++] - '0';
  if (i >= text.size() || text[i] != '{') return std::nullopt;
  const size_t end = text.find('}', i);
  if (end == std::string_view::npos) return std::nullopt;
  const auto inside = scan(text.substr(i + 1, end - i - 1));
  if (inside.size() != 1 || text.substr(i, end - i).find(kOpaque) != std::string_view::npos) return std::nullopt;
  i = end + 1;
  return inside[0].number.value;
}

// \frac{a}{b} at i; moves i behind it.
std::optional<double> read_frac(std::string_view text, size_t& i) {
  constexpr std::string_view kFrac = "\\frac";
  if (text.substr(i, kFrac.size()) != kFrac) return std::nullopt;
  size_t end = i + kFrac.size();
  const auto above = read_argument(text, end);
  const auto below = above ? read_argument(text, end) : std::nullopt;
  if (!below) return std::nullopt;
  i = end;
  return *below == 0 ? kNotANumber : *above / *below;
}

// a/b at i, both plain digits, not followed by a further slash (a date); moves i behind it.
std::optional<double> read_slash_fraction(std::string_view text, size_t& i) {
  const size_t middle = end_of_digits(text, i);
  if (middle == i || middle >= text.size() || text[middle] != '/') return std::nullopt;
  const size_t end = end_of_digits(text, middle + 1);
  if (end == middle + 1 || (end < text.size() && text[end] == '/')) return std::nullopt;
  const double below = to_double(std::string(text.substr(middle + 1, end - middle - 1)));
  const double value = below == 0 ? kNotANumber : to_double(std::string(text.substr(i, middle - i))) / below;
  i = end;
  return value;
}

// An unsigned number, not finite if it overflows or divides by 0, that begins at i with a digit, a point before a
// digit, or \frac.
std::optional<Found> read_number(std::string_view text, size_t i) {
  Found found;
  found.begin = i;
  if (const auto value = read_frac(text, i)) {
    found.number.value = *value;
    found.end = i;
    return found;
  }
  std::string digits;
  size_t end = is_digit(text[i]) ? read_grouped(text, i, digits) : i;
  bool integer = true;
  if (end + 1 < text.size() && text[end] == '.' && is_digit(text[end + 1])) {
    const size_t after = end_of_digits(text, end + 1);
    digits += text.substr(end, after - end);
    end = after;
    integer = false;
  }
  if (digits.empty()) return std::nullopt;
  // 1e3
  if (end + 1 < text.size() && (text[end] == 'e' || text[end] == 'E')) {
    const size_t first = end + 1 + (text[end + 1] == '-' || text[end + 1] == '+');
    const size_t after = end_of_digits(text, first);
    if (after > first && (after == text.size() || !is_letter(text[after]))) {
      digits += text.substr(end, after - end);
      end = after;
      integer = false;
    }
  }
  double value = to_double(digits);
  // 1.5 * 10^3 and 1.5 * 10^{-3}
  if (size_t power = skip_spaces(text, end); power < text.size() && text[power] == '*') {
    power = skip_spaces(text, power + 1);
    if (text.substr(power, 3) == "10^") {
      power += 3;
      const bool brace = power < text.size() && text[power] == '{';
      power += brace;
      const bool negative = power < text.size() && text[power] == '-';
      power += negative;
      const size_t after = end_of_digits(text, power);
      if (after > power && (!brace || (after < text.size() && text[after] == '}'))) {
        const double exponent = to_double(std::string(text.substr(power, after - power)));
        value *= std::pow(10.0, negative ? -exponent : exponent);
        end = after + brace;
        integer = false;
      }
    }
  }
  if (integer) {
    if (size_t fraction = i; const auto plain = read_slash_fraction(text, fraction)) {  // 3/4
      value = *plain;
      end = fraction;
      integer = false;
    } else {  // 1 1/2, 1\frac{1}{2}
      const size_t next = skip_spaces(text, end);
      size_t part_end = next;
      const auto part = next < text.size() ? read_frac(text, part_end) : std::nullopt;
      const auto slash = !part && next > end && next < text.size() ? read_slash_fraction(text, part_end) : std::nullopt;
      if (const auto fraction_value = part ? part : slash;
          fraction_value && *fraction_value >= 0 && *fraction_value < 1) {
        value += *fraction_value;
        end = part_end;
        integer = false;
      }
    }
  }
  found.number.value = value;
  if (integer) {
    const size_t significant = digits.find_first_not_of('0');
    found.number.digits = significant == std::string::npos ? "0" : digits.substr(significant);
  }
  found.end = end;
  return found;
}

// Moves back over currency signs, an opening brace and a minus; true if it is a sign, not a subtraction or a range.
bool take_sign(std::string_view text, size_t& begin) {
  size_t i = begin;
  while (i > 0 && (text[i - 1] == '$' || text[i - 1] == '{')) --i;
  if (i == 0 || text[i - 1] != '-') {
    begin = i;
    return false;
  }
  const char before = i >= 2 ? text[i - 2] : ' ';
  if (is_digit(before) || is_letter(before) || before == ')' || before == '}' || before == '%') return false;
  begin = i - 1;
  return true;
}

std::vector<Found> scan(std::string_view text) {
  std::vector<Found> numbers;
  for (size_t i = 0; i < text.size();) {
    const bool begins =
        is_digit(text[i]) || (text[i] == '.' && i + 1 < text.size() && is_digit(text[i + 1])) || text[i] == '\\';
    if (!begins) {
      ++i;
      continue;
    }
    // part of a word, an exponent or an index: x2, m^2, a_1, m^{2}
    const char before = i == 0 ? ' ' : text[i - 1];
    const bool in_braces = before == '{' && i >= 2 && (text[i - 2] == '^' || text[i - 2] == '_');
    if (is_digit(text[i]) && (is_letter(before) || before == '_' || before == '^' || in_braces)) {
      i = end_of_digits(text, i);
      continue;
    }
    auto found = read_number(text, i);
    if (!found) {
      i = std::max(i + 1, end_of_digits(text, i));
      continue;
    }
    i = found->end;
    if (!std::isfinite(found->number.value)) continue;
    if (take_sign(text, found->begin)) {
      found->number.value = -found->number.value;
      if (!found->number.digits.empty() && found->number.digits != "0") found->number.digits.insert(0, "-");
    }
    numbers.push_back(std::move(*found));
  }
  return numbers;
}

// ---- Where the answer stands
// --------------------------------------------------------------------------------------------------

std::string lower(std::string_view text) {
  std::string out(text);
  for (char& c : out)
    if (c >= 'A' && c <= 'Z') c = static_cast<char>(c - 'A' + 'a');
  return out;
}

// What follows the last "=" (or "\approx", gone by now), else all of it.
std::string_view right_hand_side(std::string_view text) {
  const size_t equals = text.rfind('=');
  return equals == std::string_view::npos ? text : text.substr(equals + 1);
}

// The content of the last \boxed{…} that is closed.
std::optional<std::string_view> last_boxed(std::string_view text) {
  constexpr std::string_view kBoxed = "\\boxed";
  for (size_t at = text.rfind(kBoxed); at != std::string_view::npos;
       at = at == 0 ? std::string_view::npos : text.rfind(kBoxed, at - 1)) {
    const size_t open = skip_spaces(text, at + kBoxed.size());
    if (open >= text.size() || text[open] != '{') continue;
    int depth = 0;
    for (size_t i = open; i < text.size(); ++i) {
      depth += (text[i] == '{') - (text[i] == '}');
      if (depth == 0) return text.substr(open + 1, i - open - 1);
    }
  }
  return std::nullopt;
}

std::optional<Number> only_number(std::string_view text) {
  const auto numbers = scan(right_hand_side(text));
  if (numbers.size() != 1 || text.find(kOpaque) != std::string_view::npos) return std::nullopt;
  return numbers[0].number;
}

// "#### 7 apples", not the heading "#### 2. Add them up".
std::optional<Number> after_hashes(std::string_view text) {
  const size_t at = text.rfind("####");
  if (at == std::string_view::npos) return std::nullopt;
  const size_t begin = at + 4;
  const std::string_view line = text.substr(begin, text.find('\n', begin) - begin);
  const auto numbers = scan(line);
  if (numbers.empty() || skip_spaces(line, 0) != numbers[0].begin) return std::nullopt;
  const size_t end = numbers[0].end;
  if (end < line.size() && (line[end] == '.' || line[end] == ')' || line[end] == ':') &&
      skip_spaces(line, end + 1) < line.size())
    return std::nullopt;
  return numbers[0].number;
}

// Where a phrase such as "the answer is" or "Answer:" ends; the last one that is not "to find the answer:" or the like.
std::optional<size_t> after_answer_phrase(std::string_view text) {
  const std::string low = lower(text);
  for (size_t at = low.rfind("answer"); at != std::string::npos;
       at = at == 0 ? std::string::npos : low.rfind("answer", at - 1)) {
    if (at > 0 && is_letter(low[at - 1])) continue;
    std::string_view before = std::string_view(low).substr(0, at);
    if (before.ends_with("the ")) before.remove_suffix(4);
    bool sought = false;
    for (const std::string_view verb :
         {"find ", "get ", "reach ", "compute ", "calculate ", "determine ", "verify ", "check ", "obtain "})
      sought |= before.ends_with(verb);
    if (sought) continue;
    // up to 80 characters of the same sentence may stand between ("the answer to the question is")
    for (size_t i = at + 6; i < low.size() && i < at + 86 && low[i] != '\n' && low[i] != '.'; ++i) {
      if (low[i] == ':' || low[i] == '=') return i + 1;
      for (const std::string_view verb : {" is ", " are ", " equals ", " is:", " is\n"})
        if (std::string_view(low).substr(i, verb.size()) == verb) return i + verb.size();
    }
  }
  return std::nullopt;
}

std::optional<Number> after_answer(std::string_view text, bool& phrase) {
  const auto after = after_answer_phrase(text);
  phrase = after.has_value();
  if (!phrase) return std::nullopt;
  const std::string_view rest = text.substr(*after);
  // its line, or the first that is not blank; up to the end of the sentence
  size_t begin = skip_spaces(rest, 0);
  while (begin < rest.size() && (rest[begin] == ':' || is_space(rest[begin]))) ++begin;
  std::string_view sentence = rest.substr(begin, rest.find('\n', begin) - begin);
  for (size_t i = 0; i + 1 < sentence.size(); ++i)
    if (sentence[i] == '.' && is_space(sentence[i + 1])) sentence = sentence.substr(0, i);
  const auto right = scan(right_hand_side(sentence));
  if (!right.empty()) return right[0].number;
  const auto later = scan(rest);
  if (!later.empty()) return later.back().number;
  return std::nullopt;
}

}  // namespace

std::optional<Number> final_number(std::string_view text) {
  const std::string plain = normalised(text);
  std::string_view rest = plain;
  const std::string low = lower(plain);
  if (const size_t open = low.rfind("<answer>"); open != std::string::npos) {
    const size_t begin = open + 8;
    rest = rest.substr(begin, low.find("</answer>", begin) - begin);
  }
  if (const auto boxed = last_boxed(rest)) return only_number(*boxed);
  if (const auto number = after_hashes(rest)) return number;
  bool phrase = false;
  if (const auto number = after_answer(rest, phrase); number || phrase) return number;
  const auto numbers = scan(rest);
  if (numbers.empty()) return std::nullopt;
  return numbers.back().number;
}

bool numbers_agree(const Number& a, const Number& b, double tolerance) {
  const bool long_integers = !a.digits.empty() && !b.digits.empty() && std::max(a.digits.size(), b.digits.size()) >= 16;
  if (long_integers && tolerance < 1) return a.digits == b.digits;
  return std::abs(a.value - b.value) <= tolerance;
}

}  // namespace temper
