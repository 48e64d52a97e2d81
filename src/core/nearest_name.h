// For messages about words that do not exist: which of the known ones was probably meant.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace temper {

// Of `names` the one with the least edit distance (insertions, deletions, substitutions, swaps of neighbours), the
// first of several; empty if there are none.
std::string nearest_name(std::string_view name, const std::vector<std::string>& names);

}  // namespace temper
