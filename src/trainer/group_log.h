// The log of accepted groups: what workers generated and no step has consumed survives the hub's death. A group is
// appended before it is acknowledged; after a restart those that belong to the checkpoint's history are used instead of
// being generated again. Groups are appended in memory and written together, many with one write. A log is used by one
// thread at a time; nothing here waits for the disk but the constructor and LogTrim::write().
//
// The file is a row of records: u32 magic "TGRP", u32 kind, u64 bytes of the body, u64 XXH3-64 of these 16 bytes and
// the body, body. Kinds: 1, a trainer's start {epoch, version}; 3, a group {epoch, serial, prompt hash, completions}
// (2 was one in an older form, which is passed over). Reading stops at the first record that is not whole: the tail of
// a write that a crash cut off.
//
// Which groups a start at version v may use: those whose newest token is of version v or older, and was so at every
// start between the group and now: a start at version c undid the versions above c, though their numbers come again.
#pragma once
#include <cstdint>
#include <functional>
#include <future>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/packed_completions.h"
#include "comm/rollout_rules.h"
#include "core/rollout_types.h"

namespace temper {

struct LoggedGroup {
  int64_t epoch = 0;
  int64_t serial = 0;
  uint64_t prompt_hash = 0;  // of its token ids
  PackedCompletions completions;
};

uint64_t hash_prompt(const Prompt& prompt);

// A file that is open, shared by what still uses it: the log, its trimming, its way to the disk.
using SharedFile = std::shared_ptr<const int>;

std::string start_record(int64_t epoch, PolicyVersion version);
std::string group_record(const LoggedGroup& group);

struct LogContents {
  std::vector<LoggedGroup> groups;  // that a start at the given version may use; of equal serials the last
  int64_t last_epoch = 0;
  size_t valid_bytes = 0;  // up to the first record that is not whole
};
LogContents read_group_log(std::string_view bytes, PolicyVersion version, const RolloutRules& rules = {});

class GroupLog;

// After a checkpoint: the log without the groups that no restart needs. Made from the log, written beside it while the
// log goes on, then put in its place by GroupLog::adopt().
class LogTrim {
 public:
  LogTrim(const GroupLog& log, const std::function<bool(int64_t serial)>& needed);
  void write();  // what was needed, durably; IoError: the log stays as it is

 private:
  friend GroupLog;
  struct Piece {
    int64_t serial = 0;
    int64_t from = 0, size_bytes = 0;  // in the old file
  };
  std::string path_, start_;
  SharedFile old_, file_;
  std::vector<Piece> pieces_;
  int64_t upto_;  // of the old file
};

class GroupLog {
 public:
  // Reads what is there, cuts off a torn tail, and notes this start, durably: the epoch is greater than every earlier
  // one and at least at_least. IoError where the file cannot be written; FormatError where it is another kind of file.
  GroupLog(std::string path, PolicyVersion version, int64_t at_least_epoch, int64_t sync_every_ms);
  ~GroupLog();
  GroupLog(const GroupLog&) = delete;
  GroupLog& operator=(const GroupLog&) = delete;

  int64_t epoch() const { return epoch_; }
  std::vector<LoggedGroup> take_replay() { return std::exchange(replay_, {}); }

  // In memory, until flush().
  void append(const LoggedGroup& group);
  // Writes what was appended. The number of groups that could not be (a full disk): all of them or none, and the file
  // is as before.
  int64_t flush();
  // Begins to bring what was written to the disk, where the last time is sync_every_ms ago and has come to its end.
  void sync_if_due(int64_t now_ms);
  // After its write(). IoError: the old file stays.
  void adopt(LogTrim trim);

 private:
  friend LogTrim;
  struct Place {
    int64_t serial = 0;
    int64_t at = 0, size_bytes = 0;
  };

  std::string path_, start_;
  SharedFile file_;
  int64_t size_bytes_ = 0;     // of the file
  std::vector<Place> places_;  // of the groups in the file and in appended_
  std::string appended_;
  int64_t num_appended_ = 0;
  int64_t epoch_ = 0;
  int64_t sync_every_ms_;
  int64_t last_sync_ms_ = 0;
  bool dirty_ = false, renamed_ = false;  // since it was brought to the disk
  std::future<void> syncing_;
  std::vector<LoggedGroup> replay_;
};

}  // namespace temper
