#include "core/hash.h"

#include <xxhash.h>

#include <cstdio>

namespace temper {
namespace {

std::string hex128(XXH128_hash_t hash) { return hex64(hash.high64) + hex64(hash.low64); }

XXH3_state_t* as_state(void* state) { return static_cast<XXH3_state_t*>(state); }

}  // namespace

uint64_t xxh3_64(const void* data, size_t size_bytes) { return XXH3_64bits(data, size_bytes); }

std::string xxh3_128_hex(const void* data, size_t size_bytes) { return hex128(XXH3_128bits(data, size_bytes)); }

std::string hex64(uint64_t value) {
  char text[17];
  std::snprintf(text, sizeof text, "%016llx", static_cast<unsigned long long>(value));
  return text;
}

Xxh3Stream::Xxh3Stream() : state_(XXH3_createState()) { XXH3_128bits_reset(as_state(state_)); }
Xxh3Stream::~Xxh3Stream() { XXH3_freeState(as_state(state_)); }
void Xxh3Stream::update(const void* data, size_t size_bytes) {
  XXH3_128bits_update(as_state(state_), data, size_bytes);
}
std::string Xxh3Stream::digest_hex() const { return hex128(XXH3_128bits_digest(as_state(state_))); }

}  // namespace temper
