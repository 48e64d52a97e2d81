// Byte-pair encoding of one piece of text, over raw bytes: tokens and merges of a tokenizer.json, and a cache of pieces
// seen. Not thread-safe because of the cache: Tokenizer holds a lock.
#pragma once
#include <array>
#include <cstdint>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

namespace temper {

// tokenizer.json writes each byte as a printable character (GPT-2's table: "Ġ" is a blank). Text that is not in that
// alphabet comes back as it is.
std::string bytes_of_token(std::string_view token);
std::string token_of_byte(uint8_t byte);

class BytePairEncoder {
 public:
  // model: the "model" object of a tokenizer.json. FormatError for anything but byte-level BPE.
  BytePairEncoder(const nlohmann::json& model, const std::string& where);
  void encode(std::string_view piece, std::vector<int32_t>& out);

 private:
  struct Merge {
    int32_t rank, token;
  };
  struct Hash {
    using is_transparent = void;
    size_t operator()(std::string_view text) const;
  };
  template <class Value>
  using ByText = std::unordered_map<std::string, Value, Hash, std::equal_to<>>;

  void encode_uncached(std::string_view piece, std::vector<int32_t>& out) const;
  const Merge* find_merge(int32_t left, int32_t right) const;

  ByText<int32_t> tokens_;                      // raw bytes → id
  std::array<int32_t, 256> byte_tokens_;        // -1: the vocabulary leaves this byte out
  std::unordered_map<uint64_t, Merge> merges_;  // left id << 32 | right id
  bool ignore_merges_ = false;                  // a piece that is a token is that token
  ByText<std::vector<int32_t>> cache_;
};

}  // namespace temper
