#include "rollout/stop_strings.h"

#include <algorithm>

namespace temper {

bool StopMatcher::append(std::string_view bytes, const std::vector<std::string>& stop) {
  tail_ += bytes;
  size_t longest = 0;
  for (const std::string& text : stop) {
    if (tail_.find(text) != std::string::npos) return true;
    longest = std::max(longest, text.size());
  }
  const size_t keep = longest == 0 ? 0 : longest - 1;
  if (tail_.size() > keep) tail_.erase(0, tail_.size() - keep);
  return false;
}

std::string cut_at_stop(std::string text, const std::vector<std::string>& stop) {
  size_t end = text.size();
  for (const std::string& each : stop) end = std::min(end, text.find(each));
  text.resize(end);
  return text;
}

}  // namespace temper
