#include "data/overlap.h"

#include <unordered_set>

namespace temper {
namespace {

std::string with_single_blanks(const std::string& text) {
  std::string out;
  for (const char c : text) {
    const bool blank = c == ' ' || (c >= '\t' && c <= '\r');
    if (!blank)
      out += c;
    else if (!out.empty() && out.back() != ' ')
      out += ' ';
  }
  if (!out.empty() && out.back() == ' ') out.pop_back();
  return out;
}

}  // namespace

int64_t count_overlap(const std::vector<std::string>& eval_prompts, const std::vector<std::string>& train_prompts) {
  std::unordered_set<std::string> seen;
  for (const auto& prompt : train_prompts) seen.insert(with_single_blanks(prompt));
  int64_t count = 0;
  for (const auto& prompt : eval_prompts) count += seen.count(with_single_blanks(prompt)) != 0;
  return count;
}

}  // namespace temper
