// Base64 (RFC 4648, with padding), for state blobs that are not text.
#pragma once
#include <string>
#include <string_view>

namespace temper {

std::string encode_base64(std::string_view bytes);
bool decode_base64(std::string_view text, std::string* bytes);  // false unless it is canonical

}  // namespace temper
