// The log of accepted groups: what workers generated and no step has consumed survives the hub's death. A group is
// appended before it is acknowledged; after a restart those that belong to the checkpoint's history are used instead of
// being generated again. Written from the hub's thread.
//
// The file is a row of records: u32 magic "TGRP", u32 kind, u64 bytes of the body, u64 XXH3-64 of these 16 bytes and
// the body, body. Kinds: 1, a trainer's start {epoch, version}; 2, a group {epoch, serial, prompt hash, completions}.
// Reading stops at the first record that is not whole: the tail of a write that a crash cut off.
//
// Which groups a start at version v may use: those whose newest token is of version v or older, and was so at every
// start between the group and now: a start at version c undid the versions above c, though their numbers come again.
#pragma once
#include <cstdint>
#include <functional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/rollout_rules.h"
#include "core/rollout_types.h"

namespace temper {

struct LoggedGroup {
  int64_t epoch = 0;
  int64_t serial = 0;
  uint64_t prompt_hash = 0;  // of its token ids
  std::vector<Completion> completions;
};

uint64_t hash_prompt(const Prompt& prompt);

std::string start_record(int64_t epoch, PolicyVersion version);
std::string group_record(const LoggedGroup& group);

struct LogContents {
  std::vector<LoggedGroup> groups;  // that a start at the given version may use; of equal serials the last
  int64_t last_epoch = 0;
  size_t valid_bytes = 0;  // up to the first record that is not whole
};
LogContents read_group_log(std::string_view bytes, PolicyVersion version, const RolloutRules& rules = {});

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

  // False: not written (a full disk); the file is as before.
  bool append(const LoggedGroup& group);
  // fsync, where something was appended and the last one is sync_every_ms ago.
  void sync_if_due(int64_t now_ms);
  // After a checkpoint: keeps the groups of these serials only; version is the newest there is. IoError: the old file
  // stays.
  void keep_only(const std::function<bool(int64_t serial)>& needed, PolicyVersion version);

 private:
  void open_at_end();

  std::string path_;
  int descriptor_ = -1;
  int64_t size_bytes_ = 0;
  int64_t epoch_ = 0;
  int64_t sync_every_ms_;
  int64_t last_sync_ms_ = 0;
  bool dirty_ = false;
  std::vector<LoggedGroup> replay_;
};

}  // namespace temper
