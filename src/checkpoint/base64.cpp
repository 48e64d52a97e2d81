#include "checkpoint/base64.h"

#include <cstdint>

namespace temper {
namespace {

constexpr std::string_view kDigits = "ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/";

}  // namespace

std::string encode_base64(std::string_view bytes) {
  std::string text;
  text.reserve((bytes.size() + 2) / 3 * 4);
  for (size_t i = 0; i < bytes.size(); i += 3) {
    uint32_t group = 0;
    const size_t count = bytes.size() - i < 3 ? bytes.size() - i : 3;
    for (size_t j = 0; j < 3; ++j) group = group << 8 | (j < count ? static_cast<uint8_t>(bytes[i + j]) : 0u);
    for (size_t j = 0; j < 4; ++j) text += j <= count ? kDigits[group >> (18 - 6 * j) & 63] : '=';
  }
  return text;
}

bool decode_base64(std::string_view text, std::string* bytes) {
  bytes->clear();
  if (text.size() % 4 != 0) return false;
  for (size_t i = 0; i < text.size(); i += 4) {
    uint32_t group = 0;
    size_t digits = 0;
    for (size_t j = 0; j < 4; ++j) {
      const size_t value = kDigits.find(text[i + j]);
      if (value != std::string_view::npos && digits == j) {
        group |= static_cast<uint32_t>(value) << (18 - 6 * j);
        ++digits;
      } else if (text[i + j] != '=' || i + 4 != text.size()) {
        return false;
      }
    }
    if (digits < 2) return false;
    for (size_t j = 0; j + 1 < digits; ++j) *bytes += static_cast<char>(group >> (16 - 8 * j) & 255);
  }
  return encode_base64(*bytes) == text;
}

}  // namespace temper
