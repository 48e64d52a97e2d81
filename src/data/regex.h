// A regular expression over UTF-8 text, compiled once (PCRE2 with its just-in-time compiler). Patterns are those of
// Hugging Face tokenizers, written for Oniguruma. Immutable and thread-safe.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>

namespace temper {

class Regex {
 public:
  // literal: the pattern is plain text. FormatError where the pattern cannot be compiled; `where` is named in it.
  Regex(const std::string& pattern, bool literal, const std::string& where);
  Regex(Regex&&) noexcept;
  Regex& operator=(Regex&&) noexcept;
  ~Regex();
  // Begin and end in bytes of the first match that starts at or after `from`. REQUIRES: valid UTF-8.
  std::optional<std::pair<size_t, size_t>> find(std::string_view text, size_t from) const;

 private:
  void* code_ = nullptr;  // pcre2_code
};

}  // namespace temper
