// JSON has no NaN and no Infinity, yet Python writes them, and 1e999 is JSON but no double. A parser can only say
// "invalid literal"; to name the place, such tokens are turned into marked strings before parsing.
#pragma once
#include <string>
#include <string_view>

namespace temper {

// Every NaN, Infinity, -Infinity and number beyond the range of a double, outside strings, as the string kMark + token.
std::string mark_non_finite(std::string_view json);

inline constexpr std::string_view kNonFiniteMark = "\x7fnon-finite:";

}  // namespace temper
