// An option of the command line whose values are those of a configuration key.
#pragma once
#include <algorithm>

#include "apps/command_line.h"
#include "config/choices.h"

namespace temper {

template <class Enum>
Enum choice_of(const CommandLine& line, const char* option) {
  const std::span<const std::string_view> names = choice_names<Enum>();
  const std::string name = line.one_of(option, {names.begin(), names.end()});
  return static_cast<Enum>(std::find(names.begin(), names.end(), name) - names.begin());
}

}  // namespace temper
