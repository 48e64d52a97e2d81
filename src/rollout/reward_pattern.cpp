#include "rollout/reward_pattern.h"

#define PCRE2_CODE_UNIT_WIDTH 8
#include <pcre2.h>

#include <algorithm>
#include <stdexcept>

#include "core/error.h"

namespace temper {
namespace {

// About a tenth of a second of backtracking, and no more than 32 MiB.
constexpr uint32_t kMatchLimit = 1'000'000;
constexpr uint32_t kHeapLimitKib = 32 * 1024;

std::string pcre_message(int code) {
  PCRE2_UCHAR text[256];
  pcre2_get_error_message(code, text, sizeof text);
  return reinterpret_cast<const char*>(text);
}

struct CodeFree {
  void operator()(pcre2_code* code) const { pcre2_code_free(code); }
};
struct DataFree {
  void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
};
struct ContextFree {
  void operator()(pcre2_match_context* context) const { pcre2_match_context_free(context); }
};

}  // namespace

struct RewardPattern::State {
  std::string key;
  std::unique_ptr<pcre2_code, CodeFree> code;
  std::unique_ptr<pcre2_match_data, DataFree> data;
  std::unique_ptr<pcre2_match_context, ContextFree> context;
  size_t answer_group = 0;  // 0: the pattern names none

  bool match(std::string_view text, size_t start, uint32_t options) const {
    const int result = pcre2_match(code.get(), reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), start, options,
                                   data.get(), context.get());
    if (result >= 0) return true;
    if (result == PCRE2_ERROR_NOMATCH) return false;
    throw std::runtime_error(
        format("{} gave up on a completion of {} bytes ({}). Use a pattern that backtracks less, such as [^x]* for .*",
               key, text.size(), pcre_message(result)));
  }
};

RewardPattern::RewardPattern(const std::string& key, const std::string& pattern) : state_(std::make_unique<State>()) {
  if (pattern.empty())
    throw ConfigError("{} is empty. Give a regular expression (PCRE2), such as {} = '<answer>(.*)</answer>'.", key,
                      key);
  int code = 0;
  size_t position = 0;
  state_->key = key;
  state_->code.reset(pcre2_compile(reinterpret_cast<PCRE2_SPTR>(pattern.data()), pattern.size(),
                                   PCRE2_UTF | PCRE2_MATCH_INVALID_UTF | PCRE2_DOTALL, &code, &position, nullptr));
  if (!state_->code)
    throw ConfigError(
        "{} = '{}' is not a regular expression (PCRE2): {} at character {}. Correct it; in TOML, single quotes keep "
        "backslashes.",
        key, pattern, pcre_message(code), position);
  state_->data.reset(pcre2_match_data_create_from_pattern(state_->code.get(), nullptr));
  state_->context.reset(pcre2_match_context_create(nullptr));
  pcre2_set_match_limit(state_->context.get(), kMatchLimit);
  pcre2_set_heap_limit(state_->context.get(), kHeapLimitKib);
  const int group = pcre2_substring_number_from_name(state_->code.get(), reinterpret_cast<PCRE2_SPTR>("answer"));
  if (group > 0) state_->answer_group = static_cast<size_t>(group);
}

RewardPattern::~RewardPattern() = default;
RewardPattern::RewardPattern(RewardPattern&&) noexcept = default;

bool RewardPattern::names_answer() const { return state_->answer_group > 0; }

bool RewardPattern::matches_whole(std::string_view text) const {
  return state_->match(text, 0, PCRE2_ANCHORED | PCRE2_ENDANCHORED);
}

std::optional<std::string> RewardPattern::last_match(std::string_view text) const {
  std::optional<std::string> last;
  size_t start = 0;
  while (start <= text.size() && state_->match(text, start, 0)) {
    const PCRE2_SIZE* ends = pcre2_get_ovector_pointer(state_->data.get());
    const size_t group = state_->answer_group;
    const bool took_part = ends[2 * group] != PCRE2_UNSET;
    last = took_part ? std::string(text.substr(ends[2 * group], ends[2 * group + 1] - ends[2 * group])) : std::string();
    start = ends[1] > start && ends[1] > ends[0] ? ends[1]
                                                 : std::max(ends[1], start) + 1;  // an empty match moves on by one
    while (start < text.size() && (text[start] & 0xc0) == 0x80) ++start;          // to the next character
  }
  return last;
}

}  // namespace temper
