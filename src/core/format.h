// format("{} of {}", a, b): each {} becomes the next argument as operator<< prints it. Enough for messages, and it
// keeps fmt (of which LibTorch and Debian ship different versions) out of every header.
#pragma once
#include <sstream>
#include <string>
#include <string_view>

namespace temper {

namespace detail {
inline void format_next(std::ostream& out, std::string_view text) { out << text; }

template <class First, class... Rest>
void format_next(std::ostream& out, std::string_view text, const First& first, const Rest&... rest) {
  const size_t hole = text.find("{}");
  if (hole == std::string_view::npos) {
    out << text;
    return;
  }
  out << text.substr(0, hole) << first;
  format_next(out, text.substr(hole + 2), rest...);
}
}  // namespace detail

template <class... Args>
std::string format(std::string_view text, const Args&... args) {
  std::ostringstream out;
  out.precision(10);
  detail::format_next(out, text, args...);
  return out.str();
}

// "a, b, c" of any range of printable things.
template <class Range>
std::string join(const Range& range, std::string_view separator = ", ") {
  std::ostringstream out;
  bool first = true;
  for (const auto& item : range) {
    if (!first) out << separator;
    out << item;
    first = false;
  }
  return out.str();
}

}  // namespace temper
