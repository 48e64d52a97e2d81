// XXH3 of bytes: file and block checksums, data set identity, train/held-out splits. Not cryptographic.
#pragma once
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace temper {

uint64_t xxh3_64(const void* data, size_t size_bytes);
inline uint64_t xxh3_64(std::string_view text) { return xxh3_64(text.data(), text.size()); }

// 32 lower-case hexadecimal digits, most significant first.
std::string xxh3_128_hex(const void* data, size_t size_bytes);
inline std::string xxh3_128_hex(std::string_view text) { return xxh3_128_hex(text.data(), text.size()); }

// 16 lower-case hexadecimal digits.
std::string hex64(uint64_t value);

// XXH3-128 of a stream, block by block.
class Xxh3Stream {
 public:
  Xxh3Stream();
  ~Xxh3Stream();
  Xxh3Stream(const Xxh3Stream&) = delete;
  Xxh3Stream& operator=(const Xxh3Stream&) = delete;
  void update(const void* data, size_t size_bytes);
  std::string digest_hex() const;

 private:
  void* state_;  // XXH3_state_t
};

}  // namespace temper
