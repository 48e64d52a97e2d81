#include "observe/tensorboard.h"

#include <fcntl.h>
#include <unistd.h>

#include <array>
#include <bit>
#include <cerrno>
#include <chrono>
#include <cmath>
#include <cstring>

#include "core/clock.h"
#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

constexpr std::array<uint32_t, 256> crc_table() {
  std::array<uint32_t, 256> table{};
  for (uint32_t i = 0; i < 256; ++i) {
    uint32_t crc = i;
    for (int bit = 0; bit < 8; ++bit) crc = (crc >> 1) ^ ((crc & 1u) != 0 ? 0x82f63b78u : 0u);
    table[i] = crc;
  }
  return table;
}
constexpr std::array<uint32_t, 256> kCrcTable = crc_table();

template <class Integer>
std::string little_endian(Integer value) {
  std::string bytes(sizeof value, '\0');
  for (size_t i = 0; i < sizeof value; ++i) bytes[i] = static_cast<char>(static_cast<uint64_t>(value) >> (8 * i));
  return bytes;
}

// The four shapes of a protobuf field that events need.
std::string varint(uint64_t value) {
  std::string bytes;
  for (; value >= 0x80; value >>= 7) bytes += static_cast<char>(value | 0x80);
  return bytes + static_cast<char>(value);
}
std::string integer_field(int number, int64_t value) {
  return varint(static_cast<uint64_t>(number) << 3 | 0) + varint(static_cast<uint64_t>(value));
}
std::string double_field(int number, double value) {
  return varint(static_cast<uint64_t>(number) << 3 | 1) + little_endian(std::bit_cast<uint64_t>(value));
}
std::string float_field(int number, float value) {
  return varint(static_cast<uint64_t>(number) << 3 | 5) + little_endian(std::bit_cast<uint32_t>(value));
}
std::string bytes_field(int number, std::string_view value) {
  return varint(static_cast<uint64_t>(number) << 3 | 2) + varint(value.size()) + std::string(value);
}

// Readers take the files of a folder in the order of their names: seconds, then microseconds, keep a resumed run's file
// last.
std::string event_file_name() {
  const auto since_epoch = std::chrono::system_clock::now().time_since_epoch();
  const auto microseconds = std::chrono::duration_cast<std::chrono::microseconds>(since_epoch).count();
  char name[512];
  std::snprintf(name, sizeof name, "events.out.tfevents.%010lld.%06lld.%s.%d",
                static_cast<long long>(microseconds / 1000000), static_cast<long long>(microseconds % 1000000),
                host_name().c_str(), static_cast<int>(::getpid()));
  return name;
}

bool write_all(int descriptor, std::string_view bytes) {
  while (!bytes.empty()) {
    const ssize_t written = ::write(descriptor, bytes.data(), bytes.size());
    if (written < 0 && errno != EINTR) return false;
    if (written > 0) bytes.remove_prefix(static_cast<size_t>(written));
  }
  return true;
}

}  // namespace

uint32_t crc32c(std::string_view bytes) {
  uint32_t crc = 0xffffffffu;
  for (const char byte : bytes) crc = kCrcTable[(crc ^ static_cast<uint8_t>(byte)) & 0xffu] ^ (crc >> 8);
  return ~crc;
}

uint32_t masked_crc32c(std::string_view bytes) { return std::rotr(crc32c(bytes), 15) + 0xa282ead8u; }

TensorBoardWriter::TensorBoardWriter(const std::string& directory, std::optional<int64_t> purge_step)
    : path_(directory + "/" + event_file_name()) {
  make_directories(directory);
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CREAT | O_APPEND | O_CLOEXEC, 0644);
  if (descriptor_ < 0)
    throw IoError(
        "{}: cannot be created ({}). Check the folder's permissions and free space, or set --log.tensorboard=false.",
        path_, std::strerror(errno));
  append(double_field(1, seconds_since_epoch()) + bytes_field(3, "brain.Event:2"));
  if (purge_step)
    append(double_field(1, seconds_since_epoch()) + integer_field(2, *purge_step) +
           bytes_field(7, integer_field(1, 1)));
}

TensorBoardWriter::~TensorBoardWriter() { ::close(descriptor_); }

void TensorBoardWriter::write(const MetricRecord& record, int64_t global_step) {
  std::string summary;
  for (const auto& [name, value] : record.values)
    if (std::isfinite(value))
      summary += bytes_field(1, bytes_field(1, record.stage + "/" + name) + float_field(2, static_cast<float>(value)));
  if (!summary.empty()) append(double_field(1, record.time) + integer_field(2, global_step) + bytes_field(5, summary));
}

void TensorBoardWriter::append(std::string_view event) {
  const std::string length = little_endian(static_cast<uint64_t>(event.size()));
  std::string bytes = length + little_endian(masked_crc32c(length));
  bytes.append(event);
  bytes += little_endian(masked_crc32c(event));
  const off_t end = ::lseek(descriptor_, 0, SEEK_END);
  if (write_all(descriptor_, bytes)) return;
  // half a record would hide every later one from readers: take it back
  const bool whole = end >= 0 && ::ftruncate(descriptor_, end) == 0;
  if (++num_failed_writes_ == 1)
    log_warning("{}: an event could not be written{}; training goes on without it. Free some space on that disk.",
                path_, whole ? "" : " and half of it is left");
}

}  // namespace temper
