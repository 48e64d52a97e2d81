#include "trainer/group_log.h"

#include <fcntl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstring>
#include <map>
#include <utility>

#include "checkpoint/file_system.h"
#include "comm/rollout_messages.h"
#include "comm/wire_format.h"
#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"

namespace temper {
namespace {

constexpr uint32_t kMagic = 0x50524754;  // "TGRP"
constexpr uint32_t kStart = 1;
constexpr uint32_t kGroup = 3;
constexpr size_t kHeaderBytes = 24, kSizeAt = 8, kSumAt = 16;

// Appends a record whose body `write_body` writes.
template <class WriteBody>
void append_record(std::string& to, uint32_t kind, const WriteBody& write_body) {
  const size_t begin = to.size(), body_at = begin + kHeaderBytes;
  WireWriter writer(std::move(to));
  writer.number(kMagic);
  writer.number(kind);
  writer.number(uint64_t{0});  // the two that are known at the end
  writer.number(uint64_t{0});
  write_body(writer);
  to = writer.take();
  const uint64_t size = to.size() - body_at;
  std::memcpy(to.data() + begin + kSizeAt, &size, sizeof size);
  const std::string_view bytes = to;
  const uint64_t sum = xxh3_64(bytes.substr(begin, kSumAt)) ^ xxh3_64(bytes.substr(body_at));
  std::memcpy(to.data() + begin + kSumAt, &sum, sizeof sum);
}

void append_group(std::string& to, const LoggedGroup& group) {
  append_record(to, kGroup, [&](WireWriter& writer) {
    writer.number(group.epoch);
    writer.number(group.serial);
    writer.number(group.prompt_hash);
    group.completions.write(writer);
  });
}

SharedFile open_shared(const std::string& path, int flags) {
  const int descriptor = ::open(path.c_str(), flags | O_CLOEXEC, 0644);
  if (descriptor < 0) throw IoError("{}: cannot be opened ({}).", path, std::strerror(errno));
  return {new int(descriptor), [](const int* open) {
            ::close(*open);
            delete open;
          }};
}

bool write_at(int descriptor, std::string_view bytes, int64_t at) {
  while (!bytes.empty()) {
    const ssize_t count = ::pwrite(descriptor, bytes.data(), bytes.size(), at);
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) return false;
    bytes.remove_prefix(static_cast<size_t>(count));
    at += count;
  }
  return true;
}

std::string read_at(int descriptor, int64_t at, int64_t size_bytes) {
  std::string bytes(static_cast<size_t>(size_bytes), '\0');
  for (size_t done = 0; done < bytes.size();) {
    const ssize_t count =
        ::pread(descriptor, bytes.data() + done, bytes.size() - done, at + static_cast<int64_t>(done));
    if (count < 0 && errno == EINTR) continue;
    if (count <= 0) throw IoError("the log of groups cannot be read ({}).", std::strerror(errno));
    done += static_cast<size_t>(count);
  }
  return bytes;
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
  if (sum != (xxh3_64(bytes.substr(0, kSumAt)) ^ xxh3_64(found.body))) return std::nullopt;
  return found;
}

LoggedGroup read_group_body(std::string_view body) {
  WireReader reader(body);
  LoggedGroup group;
  group.epoch = reader.number<int64_t>();
  group.serial = reader.number<int64_t>();
  group.prompt_hash = reader.number<uint64_t>();
  group.completions = PackedCompletions::read(reader);
  return group;
}

std::string trim_path(const std::string& log) { return log + ".trim"; }

bool newer_than(const LoggedGroup& group, PolicyVersion version) {
  const auto& span = group.completions.span();
  return span && span->newest > version;
}

}  // namespace

uint64_t hash_prompt(const Prompt& prompt) {
  return xxh3_64(prompt.token_ids.data(), prompt.token_ids.size() * sizeof(int32_t));
}

std::string start_record(int64_t epoch, PolicyVersion version) {
  std::string bytes;
  append_record(bytes, kStart, [&](WireWriter& writer) {
    writer.number(epoch);
    writer.number(version);
  });
  return bytes;
}

std::string group_record(const LoggedGroup& group) {
  std::string bytes;
  append_group(bytes, group);
  return bytes;
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
  for (const LoggedGroup& group : contents.groups) {
    const auto at = static_cast<int64_t>(kept.size());
    append_group(kept, group);
    places_.push_back({group.serial, at, static_cast<int64_t>(kept.size()) - at});
  }
  start_ = start_record(epoch_, version);
  write_file_atomically(path_, kept + start_);
  size_bytes_ = static_cast<int64_t>(kept.size() + start_.size());
  replay_ = std::move(contents.groups);
  file_ = open_shared(path_, O_RDWR);
}

GroupLog::~GroupLog() { flush(); }

void GroupLog::append(const LoggedGroup& group) {
  const size_t begin = appended_.size();
  append_group(appended_, group);
  places_.push_back(
      {group.serial, size_bytes_ + static_cast<int64_t>(begin), static_cast<int64_t>(appended_.size() - begin)});
  ++num_appended_;
}

int64_t GroupLog::flush() {
  if (num_appended_ == 0) return 0;
  const bool good = write_at(*file_, appended_, size_bytes_);
  if (good) {
    size_bytes_ += static_cast<int64_t>(appended_.size());
    dirty_ = true;
  } else {
    // What follows half a record would never be read.
    [[maybe_unused]] const int cut = ::ftruncate(*file_, size_bytes_);
    places_.resize(places_.size() - static_cast<size_t>(num_appended_));
  }
  appended_.clear();
  return std::exchange(num_appended_, 0) * (good ? 0 : 1);
}

void GroupLog::sync_if_due(int64_t now_ms) {
  if (!dirty_ || now_ms - last_sync_ms_ < sync_every_ms_) return;
  if (syncing_.valid() && syncing_.wait_for(std::chrono::seconds(0)) != std::future_status::ready) return;
  syncing_ = std::async(std::launch::async,
                        [file = file_, folder = std::exchange(renamed_, false) ? parent_folder(path_) : ""] {
                          ::fdatasync(*file);
                          if (!folder.empty()) ::fsync(*open_shared(folder, O_RDONLY | O_DIRECTORY));
                        });
  last_sync_ms_ = now_ms;
  dirty_ = false;
}

void GroupLog::adopt(LogTrim trim) {
  flush();
  const std::string since = read_at(*file_, trim.upto_, size_bytes_ - trim.upto_);
  auto size = static_cast<int64_t>(start_.size());
  std::vector<Place> places;
  for (const LogTrim::Piece& piece : trim.pieces_) {
    places.push_back({piece.serial, size, piece.size_bytes});
    size += piece.size_bytes;
  }
  for (const Place& place : places_)
    if (place.at >= trim.upto_) places.push_back({place.serial, place.at - trim.upto_ + size, place.size_bytes});
  const std::string written = trim_path(path_);
  if (!write_at(*trim.file_, since, size) || ::rename(written.c_str(), path_.c_str()) != 0)
    throw IoError("{}: cannot take the place of {} ({}).", written, path_, std::strerror(errno));
  file_ = std::move(trim.file_);
  size_bytes_ = size + static_cast<int64_t>(since.size());
  places_ = std::move(places);
  dirty_ = renamed_ = true;
}

LogTrim::LogTrim(const GroupLog& log, const std::function<bool(int64_t serial)>& needed)
    : path_(trim_path(log.path_)), start_(log.start_), old_(log.file_), upto_(log.size_bytes_) {
  for (const GroupLog::Place& place : log.places_)
    if (place.at < upto_ && needed(place.serial)) pieces_.push_back({place.serial, place.at, place.size_bytes});
}

void LogTrim::write() {
  file_ = open_shared(path_, O_RDWR | O_CREAT | O_TRUNC);
  // This start comes first: what follows belongs to its history, though its tokens may be newer than the start.
  auto size = static_cast<int64_t>(start_.size());
  bool good = write_at(*file_, start_, 0);
  for (const Piece& piece : pieces_) {
    good = good && write_at(*file_, read_at(*old_, piece.from, piece.size_bytes), size);
    size += piece.size_bytes;
  }
  good = good && ::fsync(*file_) == 0;
  if (!good) throw IoError("{}: cannot be written ({}).", path_, std::strerror(errno));
}

}  // namespace temper
