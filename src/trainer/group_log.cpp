#include "trainer/group_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>

#include "comm/rollout_messages.h"
#include "comm/wire_format.h"
#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"

namespace temper {
namespace {

constexpr uint32_t kMagic = 0x50524754;  // "TGRP"
constexpr uint32_t kStart = 1;
constexpr uint32_t kGroup = 2;
constexpr size_t kHeaderBytes = 24;

std::string record(uint32_t kind, const std::string& body) {
  WireWriter writer;
  writer.number(kMagic);
  writer.number(kind);
  writer.number(static_cast<uint64_t>(body.size()));
  std::string bytes = writer.take();
  const uint64_t sum = xxh3_64(bytes) ^ xxh3_64(body);
  bytes.append(reinterpret_cast<const char*>(&sum), sizeof sum);
  return bytes + body;
}

// The body of the record that begins the bytes; nothing where it is not whole.
struct Record {
  uint32_t kind = 0;
  std::string_view body;
};
std::optional<Record> next_record(std::string_view bytes) {
  if (bytes.size() < kHeaderBytes) return std::nullopt;
  WireReader reader(bytes);
  const auto magic = reader.number<uint32_t>();
  Record found{reader.number<uint32_t>(), {}};
  const auto size = reader.number<uint64_t>();
  const auto sum = reader.number<uint64_t>();
  if (magic != kMagic || size > bytes.size() - kHeaderBytes) return std::nullopt;
  found.body = bytes.substr(kHeaderBytes, size);
  if (sum != (xxh3_64(bytes.substr(0, 16)) ^ xxh3_64(found.body))) return std::nullopt;
  return found;
}

LoggedGroup read_group_body(std::string_view body) {
  WireReader reader(body);
  LoggedGroup group;
  group.epoch = reader.number<int64_t>();
  group.serial = reader.number<int64_t>();
  group.prompt_hash = reader.number<uint64_t>();
  group.completions = read_completions(reader);
  return group;
}

bool newer_than(const LoggedGroup& group, PolicyVersion version) {
  const auto span = version_span(group.completions);
  return span && span->newest > version;
}

}  // namespace

uint64_t hash_prompt(const Prompt& prompt) {
  return xxh3_64(prompt.token_ids.data(), prompt.token_ids.size() * sizeof(int32_t));
}

std::string start_record(int64_t epoch, PolicyVersion version) {
  WireWriter writer;
  writer.number(epoch);
  writer.number(version);
  return record(kStart, writer.take());
}

std::string group_record(const LoggedGroup& group) {
  WireWriter writer;
  writer.number(group.epoch);
  writer.number(group.serial);
  writer.number(group.prompt_hash);
  write_completions(group.completions, writer);
  return record(kGroup, writer.take());
}

LogContents read_group_log(std::string_view bytes, PolicyVersion version, const RolloutRules& rules) {
  LogContents contents;
  std::map<int64_t, LoggedGroup> groups;  // by serial
  const auto undo_above = [&groups](PolicyVersion last) {
    std::erase_if(groups, [last](const auto& entry) { return newer_than(entry.second, last); });
  };
  while (const auto found = next_record(bytes.substr(contents.valid_bytes))) {
    if (found->kind == kGroup) {
      LoggedGroup group = read_group_body(found->body);
      groups[group.serial] = std::move(group);
    } else if (found->kind == kStart) {
      WireReader reader(found->body);
      contents.last_epoch = std::max(contents.last_epoch, reader.number<int64_t>());
      if (rules.replay_own_history) undo_above(reader.number<PolicyVersion>());
    }
    contents.valid_bytes += kHeaderBytes + found->body.size();
  }
  undo_above(version);
  for (auto& [serial, group] : groups) contents.groups.push_back(std::move(group));
  return contents;
}

GroupLog::GroupLog(std::string path, PolicyVersion version, int64_t at_least_epoch, int64_t sync_every_ms)
    : path_(std::move(path)), sync_every_ms_(sync_every_ms) {
  const std::string bytes = file_exists(path_) ? read_file(path_) : "";
  LogContents contents = read_group_log(bytes, version);
  if (contents.valid_bytes == 0 && bytes.size() >= kHeaderBytes)
    throw FormatError("{}: is not a log of groups. Move it away: groups in it would be generated again.", path_);
  epoch_ = std::max(contents.last_epoch + 1, at_least_epoch);
  // The new file holds what is of use; it takes the old one's place when it is durable.
  std::string kept;
  for (const LoggedGroup& group : contents.groups) kept += group_record(group);
  write_file_atomically(path_, kept + start_record(epoch_, version));
  replay_ = std::move(contents.groups);
  open_at_end();
}

GroupLog::~GroupLog() {
  if (descriptor_ >= 0) ::close(descriptor_);
}

void GroupLog::open_at_end() {
  if (descriptor_ >= 0) ::close(descriptor_);
  descriptor_ = ::open(path_.c_str(), O_WRONLY | O_CLOEXEC);
  size_bytes_ = descriptor_ < 0 ? -1 : ::lseek(descriptor_, 0, SEEK_END);
  if (size_bytes_ < 0) throw IoError("{}: cannot be opened ({}).", path_, std::strerror(errno));
  dirty_ = false;
}

bool GroupLog::append(const LoggedGroup& group) {
  const std::string bytes = group_record(group);
  size_t written = 0;
  while (written < bytes.size()) {
    const ssize_t count = ::pwrite(descriptor_, bytes.data() + written, bytes.size() - written,
                                   size_bytes_ + static_cast<off_t>(written));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) {
      // What follows half a record would never be read.
      [[maybe_unused]] const int cut = ::ftruncate(descriptor_, size_bytes_);
      return false;
    }
    written += static_cast<size_t>(count);
  }
  size_bytes_ += static_cast<int64_t>(bytes.size());
  dirty_ = true;
  return true;
}

void GroupLog::sync_if_due(int64_t now_ms) {
  if (!dirty_ || now_ms - last_sync_ms_ < sync_every_ms_) return;
  ::fdatasync(descriptor_);
  last_sync_ms_ = now_ms;
  dirty_ = false;
}

void GroupLog::keep_only(const std::function<bool(int64_t serial)>& needed, PolicyVersion version) {
  std::string kept;
  const LogContents contents = read_group_log(read_file(path_), version);
  const std::string start = start_record(epoch_, version);
  for (const LoggedGroup& group : contents.groups)
    if (needed(group.serial)) kept += group_record(group);
  write_file_atomically(path_, kept + start);
  open_at_end();
}

}  // namespace temper
