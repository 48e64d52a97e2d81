#define PCRE2_CODE_UNIT_WIDTH 8
#include "data/regex.h"

#include <pcre2.h>

#include "core/error.h"

namespace temper {
namespace {

// Oniguruma's \s is Unicode's White_Space; PCRE2's, with UCP, has U+180E too. Spelled out, both agree.
constexpr std::string_view kWhiteSpace =
    R"(\x{9}-\x{d}\x{20}\x{85}\x{a0}\x{1680}\x{2000}-\x{200a}\x{2028}\x{2029}\x{202f}\x{205f}\x{3000})";

std::string spell_out_white_space(std::string_view pattern) {
  std::string out;
  bool in_class = false;
  for (size_t i = 0; i < pattern.size(); ++i) {
    const char c = pattern[i];
    if (c == '\\' && i + 1 < pattern.size()) {
      const char next = pattern[++i];
      if (next == 's')
        out += in_class ? std::string(kWhiteSpace) : format("[{}]", kWhiteSpace);
      else if (next == 'S' && !in_class)
        out += format("[^{}]", kWhiteSpace);
      else
        (out += c) += next;
      continue;
    }
    if (c == '[') in_class = true;
    if (c == ']') in_class = false;
    out += c;
  }
  return out;
}

// One result slot a thread: only the whole match is asked for.
pcre2_match_data* match_data() {
  struct Free {
    void operator()(pcre2_match_data* data) const { pcre2_match_data_free(data); }
  };
  thread_local const std::unique_ptr<pcre2_match_data, Free> data(pcre2_match_data_create(1, nullptr));
  return data.get();
}

std::string error_text(int code) {
  PCRE2_UCHAR buffer[160];
  pcre2_get_error_message(code, buffer, sizeof(buffer));
  return reinterpret_cast<const char*>(buffer);
}

}  // namespace

Regex::Regex(const std::string& pattern, bool literal, const std::string& where) {
  const std::string text = literal ? pattern : spell_out_white_space(pattern);
  int error = 0;
  size_t offset = 0;
  const uint32_t options = PCRE2_UTF | PCRE2_NO_UTF_CHECK | (literal ? PCRE2_LITERAL : PCRE2_UCP);
  pcre2_code* code =
      pcre2_compile(reinterpret_cast<PCRE2_SPTR>(text.data()), text.size(), options, &error, &offset, nullptr);
  if (code == nullptr) {
    throw FormatError("{}: the regular expression '{}' cannot be used: {} at character {} of '{}'.", where, pattern,
                      error_text(error), offset, text);
  }
  pcre2_jit_compile(code, PCRE2_JIT_COMPLETE);  // where it is not available, matching is slower but the same
  code_ = code;
}

Regex::Regex(Regex&& other) noexcept : code_(std::exchange(other.code_, nullptr)) {}

Regex& Regex::operator=(Regex&& other) noexcept {
  std::swap(code_, other.code_);
  return *this;
}

Regex::~Regex() { pcre2_code_free(static_cast<pcre2_code*>(code_)); }

std::optional<std::pair<size_t, size_t>> Regex::find(std::string_view text, size_t from) const {
  const auto* code = static_cast<const pcre2_code*>(code_);
  const auto* subject = reinterpret_cast<PCRE2_SPTR>(text.data());
  int result = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK, match_data(), nullptr);
  if (result == PCRE2_ERROR_JIT_STACKLIMIT) {  // very long pieces: the interpreter keeps its state on the heap
    result = pcre2_match(code, subject, text.size(), from, PCRE2_NO_UTF_CHECK | PCRE2_NO_JIT, match_data(), nullptr);
  }
  if (result == PCRE2_ERROR_NOMATCH) return std::nullopt;
  TEMPER_CHECK(result >= 0, "matching {} bytes: {}", text.size(), error_text(result));
  const size_t* span = pcre2_get_ovector_pointer(match_data());
  return std::pair(span[0], span[1]);
}

}  // namespace temper
