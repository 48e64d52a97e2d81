// The rollout worker's side of the protocol: a state machine without sockets, clocks and threads. Who owns it hands
// over messages, finished groups, fetched weights and the time; sends what take_outbox() returns and does what
// take_actions() asks of engine and weights. One thread. docs/async.md has the protocol; the other side is
// trainer/hub.h.
//
//   connecting -> joined (Welcome) -> connecting (nothing heard, hub does not know us) ...
//   connecting -> turned away (other build, model, configuration);  any -> done (Goodbye, leave())
#pragma once
#include <cstdint>
#include <map>
#include <string>
#include <utility>
#include <variant>
#include <vector>

#include "comm/rollout_messages.h"
#include "comm/rollout_rules.h"
#include "core/rng.h"

namespace temper {

struct WorkerOptions {
  std::string name, build, model, config;  // of the Hello
  int32_t max_leases = 4;                  // groups generated or scored at once
  bool in_flight_updates = false;          // new weights between two engine steps; else when nothing is generated
  int64_t hub_timeout_ms = 5000;           // without a word from the hub: look for it again
  int64_t first_backoff_ms = 100;          // between attempts to reach the hub or to fetch weights; doubles each time
  int64_t max_backoff_ms = 5000;
  uint64_t seed = 0;  // of the back-off's jitter; different for each worker
};

enum class WorkerState : uint8_t { kConnecting, kJoined, kTurnedAway, kDone };

// What the owner is to do.
struct StartLease {
  Lease lease;
};
struct StopLease {  // in the engine; then handed_back() with what there is
  int64_t lease = 0;
};
struct ForgetLease {  // in the engine; nobody wants it
  int64_t lease = 0;
};
struct FetchWeights {  // then fetched() or fetch_failed()
  int64_t epoch = 0;
  PolicyVersion version = 0;  // at least
};
struct UseWeights {  // the fetched ones, before the next engine step
  PolicyVersion version = 0;
};
using WorkerAction = std::variant<StartLease, StopLease, ForgetLease, FetchWeights, UseWeights>;

class RolloutWorker {
 public:
  explicit RolloutWorker(WorkerOptions options, const RolloutRules& rules = {});

  void tick(int64_t now_ms);
  void receive(const RolloutMessage& message, int64_t now_ms);
  // All its tokens are drawn; its rewards may take their time, new weights do not wait for them.
  void generated(int64_t lease, int64_t now_ms);
  void finished(int64_t lease, PackedCompletions completions, int64_t now_ms);
  void handed_back(int64_t lease, std::vector<Completion> completions, int64_t now_ms);
  // Weights of an epoch that is over are not used.
  void fetched(int64_t epoch, PolicyVersion version, int64_t now_ms);
  void fetch_failed(int64_t now_ms);
  // Hands all leases back, says goodbye and is done once handed_back() came for each.
  void leave();

  std::vector<RolloutMessage> take_outbox() { return std::exchange(outbox_, {}); }
  std::vector<WorkerAction> take_actions() { return std::exchange(actions_, {}); }

  WorkerState state() const { return state_; }
  const std::string& refusal() const { return refusal_; }  // kTurnedAway: what to tell the user
  int64_t epoch() const { return epoch_; }
  PolicyVersion version() const { return version_; }
  const Welcome& welcome() const { return welcome_; }
  int64_t num_held() const { return static_cast<int64_t>(held_.size()); }

 private:
  enum class Phase : uint8_t { kGenerating, kScoring, kStopping, kSent };
  struct Held {
    Phase phase = Phase::kGenerating;
    bool exact = false;
    PolicyVersion oldest_version = 0;
    int64_t serial = 0;
    PackedCompletions completions;  // kSent: until they are acknowledged
    int64_t sent_ms = 0;
  };

  void on(const Welcome& welcome, int64_t epoch, int64_t now_ms);
  void on(const Refusal& refusal, int64_t now_ms);
  void on(const Lease& lease, int64_t now_ms);
  void connect(int64_t now_ms);
  void say_hello(int64_t now_ms);
  void send_heartbeat(int64_t now_ms);
  void send_result(int64_t lease, Held& held, int64_t now_ms);
  void offer(PolicyVersion version, int64_t now_ms);
  void fetch(int64_t now_ms);
  void use_waiting_weights(int64_t now_ms);
  void stop(int64_t lease, Held& held);
  void forget_all();
  static bool goes_on(const Held& held) { return held.phase < Phase::kStopping; }
  int64_t num_unfinished() const;
  int64_t backoff_ms(int32_t num_attempts);
  void send(RolloutMessage::Body body) { outbox_.push_back({epoch_, std::move(body)}); }

  WorkerOptions options_;
  RolloutRules rules_;
  SplitMix64 rng_;
  WorkerState state_ = WorkerState::kConnecting;
  std::string refusal_;
  bool leaving_ = false;
  int64_t epoch_ = 0;
  Welcome welcome_;
  std::map<int64_t, Held> held_;  // by lease id
  PolicyVersion version_ = -1;    // in use, of this epoch
  PolicyVersion newest_ = -1;     // that the hub told of
  PolicyVersion waiting_ = -1;    // fetched, not used yet
  bool fetching_ = false;
  int32_t num_fetch_failures_ = 0;  // in a row
  int64_t next_fetch_ms_ = 0;
  int32_t num_hellos_ = 0;  // in a row
  int64_t next_hello_ms_ = 0;
  int64_t next_heartbeat_ms_ = 0;
  int64_t heard_ms_ = 0;
  std::vector<RolloutMessage> outbox_;
  std::vector<WorkerAction> actions_;
};

}  // namespace temper
