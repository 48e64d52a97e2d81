// The hub: gives prompts out to rollout workers as leases, takes their groups in, and answers for each prompt ending
// once. A state machine without sockets, clocks and threads: who owns it hands over messages and the time and sends
// what take_outbox() returns. One thread. docs/async.md has the protocol, the states of a prompt and the invariants.
//
//   prompt:  queued -> leased -> finished -> ended (consumed; filtered)        queued, leased -> ended (failed)
//            leased -> queued: worker lost, lease late or handed back, result refused;  finished -> queued: too stale
#pragma once
#include <cstdint>
#include <deque>
#include <functional>
#include <map>
#include <optional>
#include <set>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "comm/rollout_messages.h"
#include "comm/rollout_rules.h"
#include "trainer/group_buffer.h"
#include "trainer/group_log.h"

namespace temper {

struct HubOptions {
  std::string build, model, config;  // what a worker must have; compared, and named in refusals
  int64_t epoch = 1;                 // fencing token: greater at each start of the trainer
  StalenessLimits staleness;
  int64_t heartbeat_ms = 1000;
  int64_t worker_timeout_ms = 5000;   // a worker not heard of for so long is lost
  int64_t lease_timeout_ms = 600000;  // a lease older than this is given to another worker
  int64_t unnamed_after_ms = 3000;    // a lease that heartbeats do not name after this did not arrive
  int32_t max_attempts = 5;           // leases of one prompt that end without a group; then it has failed
  int64_t max_workers = 4096;
  int64_t num_rewards = 0;  // of each completion that was scored
  int64_t vocab_size = 0;   // token ids are below it; 0: not checked
  std::vector<std::string> weights_endpoints;
};

struct HubCounters {
  int64_t num_accepted = 0;  // groups, replayed ones apart
  int64_t num_replayed = 0;  // from the log of accepted groups
  int64_t num_consumed = 0;
  int64_t num_filtered = 0;
  int64_t num_failed = 0;
  int64_t num_dropped_stale = 0;
  int64_t num_reissued = 0;             // leases of which the prompt went back to the queue
  int64_t num_continued = 0;            // leases that went out with another's partial completions
  int64_t num_unlogged = 0;             // accepted, though the log could not be written
  int64_t num_results_refused[6] = {};  // by ResultVerdict
  int64_t num_workers_refused = 0;
  int64_t num_old_epoch = 0;  // other messages of an older epoch
};

// Of a worker that is here.
struct WorkerFigures {
  std::string name;
  PolicyVersion version = -1;  // of the weights it generates with; -1: none yet
  int64_t num_leases = 0;
  double silent_s = 0;  // since it was last heard of
};

enum class PromptState : uint8_t { kQueued, kLeased, kFinished };

struct LedgerLine {
  int64_t serial = 0;
  RolloutPurpose purpose = RolloutPurpose::kTrain;
  PromptState state = PromptState::kQueued;
  int64_t lease = 0;  // kLeased
};

// A prompt whose worker was lost with it, or did not bring it in time, and which another worker has now.
struct Reissue {
  int64_t serial = 0;
  std::string from, to;   // names of workers
  int64_t waited_ms = 0;  // from the loss, as far as the hub knew of it
};

// A group for the trainer. unpack() takes long enough not to be done while others wait for the hub.
struct HubGroup {
  Prompt prompt;
  RolloutPurpose purpose = RolloutPurpose::kTrain;
  PackedCompletions completions = {};
  RolloutGroup unpack() &&;
};

class Hub {
 public:
  struct Outgoing {
    std::string route;  // the transport's name of the worker
    RolloutMessage message;
  };
  // Keeps an accepted group before it is acknowledged; false: it could not (the hub goes on, and counts it).
  using AppendToLog = std::function<bool(const LoggedGroup&)>;

  // version: of the weights at this start. replay: groups of the log that this history may use (group_log.h).
  Hub(HubOptions options, PolicyVersion version, std::vector<LoggedGroup> replay, AppendToLog append_to_log,
      const RolloutRules& rules = {});

  // ---- the trainer's side ----

  // Training prompts are asked for once each (their serials are unique); evaluation's may come again.
  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose);
  // The next group for the trainer: a failed prompt's (its completions carry the error), then, while evaluation is
  // outstanding, evaluation's alone, then baselines, then what the group buffer gives.
  std::optional<HubGroup> take();
  void filtered(int64_t count = 1);  // groups that were taken and teach nothing
  // A step was taken, its weights can be fetched.
  void publish(PolicyVersion version);
  void finish();  // says goodbye to all workers

  // Serials of training prompts that have not ended: a checkpoint keeps them.
  std::vector<int64_t> unended() const;
  bool idle() const { return entries_.empty() && outcomes_.empty(); }

  // ---- the workers' side ----

  void receive(const std::string& route, RolloutMessage message, int64_t now_ms);
  void tick(int64_t now_ms);  // looks for late leases and lost workers, gives out leases
  std::vector<Outgoing> take_outbox() { return std::exchange(outbox_, {}); }
  std::vector<Reissue> take_reissues() { return std::exchange(reissues_, {}); }

  // ---- for reports and tests ----

  std::vector<LedgerLine> ledger() const;  // of the prompts that have not ended, in the order of their requests
  const HubCounters& counters() const { return counters_; }
  const GroupBuffer& buffer() const { return buffer_; }
  // Of groups that were appended, so many turned out not to be written.
  void note_unlogged(int64_t count) { counters_.num_unlogged += count; }
  int64_t num_workers() const { return static_cast<int64_t>(workers_.size()); }
  int64_t num_idle_workers() const;  // those without a lease
  int64_t num_leases() const { return static_cast<int64_t>(leases_.size()); }
  std::vector<WorkerFigures> workers(int64_t now_ms) const;  // by name

 private:
  struct Entry {
    Prompt prompt;
    RolloutPurpose purpose = RolloutPurpose::kTrain;
    int num_completions = 1;
    SamplingParams sampling;
    PromptState state = PromptState::kQueued;
    int64_t lease = 0;                 // kLeased
    int32_t num_attempts = 0;          // leases issued
    int32_t num_failures = 0;          // of these, ended without a group
    PolicyVersion oldest_allowed = 0;  // weights; of a prompt whose group was dropped, the newest of that time
    std::vector<Completion> partials = {};
    std::optional<int64_t> lost_ms = {};  // queued since it was lost by
    std::string lost_by = {};             // this worker
  };
  struct Worker {
    std::string name;
    PolicyVersion version = -1;
    int32_t credits = 0;
    int64_t last_seen_ms = 0;
    std::set<int64_t> leases;
    // Its place in open_: of which version, with how many leases; nothing: it has none.
    std::optional<std::pair<PolicyVersion, size_t>> open = {};
  };
  struct ActiveLease {
    int64_t ticket = 0;
    std::string route;
    PolicyVersion floor = 0;
    int64_t issued_ms = 0;
  };
  using Entries = std::map<int64_t, Entry>;  // by ticket, the order of requests
  using Leases = std::map<int64_t, ActiveLease>;

  void on(const std::string& route, const Hello& hello, int64_t now_ms);
  void on(const std::string& route, Worker& worker, const Heartbeat& heartbeat, int64_t now_ms);
  void on(const std::string& route, GroupResult& result);
  void on(const std::string& route, HandBack& back);
  std::optional<Refusal> refuse(const Hello& hello) const;

  void give_out(int64_t now_ms);
  bool give_next(std::set<int64_t>& queue, int64_t now_ms);
  bool replay(int64_t ticket, Entry& entry);
  bool is_exact(const Entry& entry) const { return !is_training(entry) || options_.staleness.max_staleness == 0; }
  PolicyVersion floor_for(const Entry& entry) const;
  const std::string* find_worker(const Entry& entry, PolicyVersion floor) const;
  void issue(int64_t ticket, Entry& entry, const std::string& route, int64_t now_ms);

  ResultVerdict judge(const GroupResult& result, std::string& why) const;
  std::string why_invalid(const Entry& entry, const ActiveLease& lease, const GroupResult& result) const;
  ResultVerdict accept(const ActiveLease& lease, GroupResult& result);
  static HubGroup group_of(const Entry& entry);
  void end_lease(Leases::iterator lease);
  void put_back(int64_t ticket, bool failed, const std::string& why);
  void drop(int64_t ticket);
  std::set<int64_t>& queue_of(const Entry& entry);
  void lose_lease(int64_t id, bool requeue, const std::string& why);
  void lose_worker(const std::string& route, const std::string& why);
  void cancel_lost_leases();
  void update_open(const std::string& route, Worker& worker);
  void close(const std::string& route, Worker& worker);
  void send(const std::string& route, RolloutMessage::Body body) {
    outbox_.push_back({route, {options_.epoch, std::move(body)}});
  }
  static bool is_training(const Entry& entry) { return entry.purpose == RolloutPurpose::kTrain; }

  HubOptions options_;
  RolloutRules rules_;
  GroupBuffer buffer_;
  AppendToLog append_to_log_;
  std::unordered_map<int64_t, LoggedGroup> replay_;  // by serial
  int64_t next_ticket_ = 1;
  int64_t next_lease_ = 1;
  Entries entries_;
  std::unordered_map<int64_t, int64_t> tickets_;  // by serial, of training prompts
  std::set<int64_t> queue_;                       // tickets of training prompts
  std::set<int64_t> dropped_;                     // of those whose group was too stale: these begin before others
  std::set<int64_t> urgent_;                      // of others: the trainer waits for them
  Leases leases_;
  std::unordered_map<std::string, Worker> workers_;      // by route
  std::unordered_map<std::string, std::string> routes_;  // by name, of the newest worker of that name
  // Workers with credit left, by the version of their weights: leases held and route.
  std::map<PolicyVersion, std::set<std::pair<size_t, std::string>>> open_;
  std::deque<HubGroup> outcomes_;  // failed prompts and finished ones of other purposes
  int64_t num_eval_ = 0;           // entries of evaluation that have not ended
  int64_t now_ms_ = 0;             // of the last receive() or tick()
  std::vector<Outgoing> outbox_;
  std::vector<Reissue> reissues_;
  HubCounters counters_;
};

}  // namespace temper
