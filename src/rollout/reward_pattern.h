// A PCRE2 pattern of [reward.NAME]. Matching is bounded: a pattern that backtracks without end gives up with an error
// instead of hanging the run. Immutable after construction; one thread at a time.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class RewardPattern {
 public:
  // `key` names the setting in errors. ConfigError with the position of what is wrong. "." matches ends of line too.
  RewardPattern(const std::string& key, const std::string& pattern);
  ~RewardPattern();
  RewardPattern(RewardPattern&&) noexcept;

  bool matches_whole(std::string_view text) const;
  // The last match in the text: its group (?<answer>…) if the pattern names one (empty if it took no part), else all of
  // it.
  std::optional<std::string> last_match(std::string_view text) const;
  bool names_answer() const;
  // Both throw std::runtime_error when the bound is reached.

 private:
  struct State;
  std::unique_ptr<State> state_;
};

}  // namespace temper
