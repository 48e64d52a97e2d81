// What the hub (trainer rank 0) and the rollout workers say to each other, as plain structs, and their bytes. Both
// state machines (trainer/hub.h, rollout/worker.h) take and give these; a transport carries the bytes without looking
// inside. What each message is for, and in which state it may come, is told in docs/async.md.
//
// Bytes of a message, little-endian:
//   0  u32 magic "TMPR"      4  u16 protocol version     6  u8 type (index in Body)     7  u8 zero
//   8  i64 epoch            16  u64 bytes of the body    24  u64 XXH3-64(body) ^ XXH3-64(bytes 0 to 23)
//  32  the body: the struct's members in their order, as comm/wire_format.h writes them
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <variant>
#include <vector>

#include "comm/packed_completions.h"
#include "core/rollout_types.h"

namespace temper {

inline constexpr uint16_t kRolloutProtocol = 2;

// ---- from a worker ----

// The first message, again after every loss of contact. Workers of one name are one after the other: the newest counts.
struct Hello {
  std::string name;    // stable over restarts of the worker: host and slot
  std::string build;   // of the program; what the hub's must be equal to
  std::string model;   // identity of the model's shape and tokenizer
  std::string config;  // hash of the settings that generation and rewards depend on
};

// The whole state of a worker: sent at the agreed interval, and at once when something in it changes. It is the
// worker's request for leases too: the hub sends leases until it holds `credits` of them.
struct Heartbeat {
  PolicyVersion version = -1;        // of its weights in this epoch; -1: none yet
  int32_t credits = 0;               // leases that it may hold at once, those below included
  std::vector<int64_t> leases = {};  // ids of those that it holds, results not acknowledged yet among them
};

// A finished group under its lease; sent again until an Ack comes.
struct GroupResult {
  int64_t lease = 0;
  int64_t serial = 0;  // of the lease's prompt
  PackedCompletions completions = {};
};

// A lease given back unfinished, with what was drawn so far: another worker goes on from there.
struct HandBack {
  int64_t lease = 0;
  std::vector<Completion> completions = {};  // empty, or one each; unfinished ones are kAborted
};

// ---- from the hub ----

struct Welcome {
  int64_t heartbeat_ms = 1000;
  PolicyVersion version = 0;                        // the newest
  std::vector<std::string> weights_endpoints = {};  // one a trainer rank
};

enum class RefusalReason : uint8_t { kOtherBuild, kOtherModel, kOtherConfig, kHubFull, kUnknownWorker };

// kUnknownWorker: say Hello again. kHubFull: later. The others are final: the text names both sides' values.
struct Refusal {
  RefusalReason reason = RefusalReason::kUnknownWorker;
  std::string text;
};

// One prompt for one worker until a deadline. Draws depend on (sampling.seed, prompt.serial), never on the attempt.
struct Lease {
  int64_t id = 0;                    // unique in the epoch
  int32_t attempt = 1;               // of this prompt
  PolicyVersion oldest_version = 0;  // no token may be drawn by older weights
  bool exact = false;                // nor by newer ones
  int64_t timeout_ms = 0;            // from issue; then the hub gives the prompt to another worker
  RolloutPurpose purpose = RolloutPurpose::kTrain;
  int32_t num_completions = 1;
  SamplingParams sampling;
  Prompt prompt;
  std::vector<Completion> partials = {};  // empty, or one each to go on from
};

// The hub has no use for the lease any more: stop, and hand back what there is.
struct CancelLease {
  int64_t lease = 0;
};

enum class ResultVerdict : uint8_t {
  kAccepted,
  kDuplicate,  // the prompt has its group
  kLate,       // the lease was given to another worker
  kOldEpoch,   // of a trainer that is no more
  kTooStale,   // the weights have moved on; the prompt is given out again
  kInvalid,    // not what the lease asked for
};

// Answers a GroupResult: the worker may forget it, whatever the verdict.
struct Ack {
  int64_t lease = 0;
  ResultVerdict verdict = ResultVerdict::kAccepted;
};

// Sent to all at a new version, and as the answer to each heartbeat: a worker that hears nothing has lost the hub.
struct WeightsAvailable {
  PolicyVersion version = 0;
};

// From a worker: it leaves, and holds nothing any more. From the hub: the run is over.
struct Goodbye {};

struct RolloutMessage {
  using Body = std::variant<Hello, Heartbeat, GroupResult, HandBack, Welcome, Refusal, Lease, CancelLease, Ack,
                            WeightsAvailable, Goodbye>;
  int64_t epoch = 0;  // of the trainer start that the message belongs to; 0 in a Hello
  Body body;
};

std::string encode(const RolloutMessage& message);
// FormatError where the bytes are not such a message to the last bit: another protocol version (both named), a length
// that is not there, an unknown type or choice, arrays of a completion that differ in length. Sizes are checked before
// anything is allocated.
RolloutMessage decode_rollout_message(std::string_view bytes);
// A frame's payload: one message or several, one after another. FormatError where any is none.
std::vector<RolloutMessage> decode_rollout_messages(std::string_view bytes);

// Nothing where there is no token.
std::optional<VersionSpan> version_span(const std::vector<Completion>& completions);

}  // namespace temper
