// Finds stop strings in a text that arrives token by token, across token boundaries.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class StopMatcher {
 public:
  // True when the bytes so far contain one of the stop strings. The strings are the same at every call.
  bool append(std::string_view bytes, const std::vector<std::string>& stop);

 private:
  std::string tail_;  // what a stop string may still begin in
};

// The text before the first of the stop strings; all of it where there is none.
std::string cut_at_stop(std::string text, const std::vector<std::string>& stop);

}  // namespace temper
