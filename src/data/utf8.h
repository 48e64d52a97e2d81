// UTF-8 of tokenizer input and output: repair of invalid bytes and Unicode normalisation.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>

namespace temper {

// Each maximal invalid sequence becomes one U+FFFD, as in Python's errors="replace" and Rust's from_utf8_lossy.
std::string to_valid_utf8(std::string_view bytes);
// Of valid UTF-8, or of bytes of it cut anywhere: a character counts where it begins.
int64_t count_utf8_characters(std::string_view bytes);
// Length of the longest prefix that is valid UTF-8.
size_t valid_utf8_prefix(std::string_view bytes);
// Length of the begun character at the end that further bytes may complete; 0 where there is none.
size_t begun_utf8_suffix(std::string_view bytes);

// Code point and length in bytes of the first character. REQUIRES: valid UTF-8, not empty.
std::pair<char32_t, size_t> first_character(std::string_view text);
void append_utf8(std::string& out, char32_t character);

// Without white space at both ends, as Python's str.strip(). REQUIRES: valid UTF-8.
std::string_view strip(std::string_view text);

enum class NormalForm { kNfc, kNfd, kNfkc, kNfkd };
std::string normalise(std::string_view valid_utf8, NormalForm form);

}  // namespace temper
