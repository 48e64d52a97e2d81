// Whatever bytes come, decode_rollout_message() throws FormatError or gives a message that is written and read as
// itself (not always as the bytes that came: a prompt's fields have an order). The input is type, epoch and body: the
// rest of the header is made to fit, or no input would get past the checksum.
#include <cstdlib>
#include <cstring>

#include "comm/rollout_messages.h"
#include "core/error.h"
#include "core/hash.h"

using namespace temper;

namespace {

constexpr size_t kHeaderBytes = 32, kTypeAt = 6, kSizeAt = 16, kChecksumAt = 24;

void read_and_write(std::string_view bytes) {
  RolloutMessage message;
  try {
    message = decode_rollout_message(bytes);
  } catch (const FormatError&) {
    return;
  }
  if (const auto* result = std::get_if<GroupResult>(&message.body)) result->completions.unpack();
  const std::string once = encode(message);
  if (encode(decode_rollout_message(once)) != once) std::abort();
}

}  // namespace

extern "C" int LLVMFuzzerTestOneInput(const uint8_t* data, size_t size) {
  const std::string_view input(reinterpret_cast<const char*>(data), size);
  read_and_write(input);
  if (size < 2) return 0;
  std::string bytes = encode({.epoch = input[1] & 0x7f, .body = Goodbye{}}).substr(0, kHeaderBytes);
  bytes[kTypeAt] = input[0];
  bytes += input.substr(2);
  const uint64_t body_bytes = size - 2;
  std::memcpy(bytes.data() + kSizeAt, &body_bytes, sizeof body_bytes);
  const uint64_t sum =
      xxh3_64(std::string_view(bytes).substr(kHeaderBytes)) ^ xxh3_64(std::string_view(bytes).substr(0, kChecksumAt));
  std::memcpy(bytes.data() + kChecksumAt, &sum, sizeof sum);
  read_and_write(bytes);
  return 0;
}
