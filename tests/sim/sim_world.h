// A trainer, its hub, workers and the network between them in virtual time, from one seed: the real state machines
// (trainer/hub.h, rollout/worker.h, trainer/group_log.h), everything around them played. Faults: workers killed,
// stopped and continued, slow, lying, of another build; messages late, lost, doubled, out of order, damaged;
// partitions; the trainer killed and restarted from its last checkpoint, with a log whose tail is torn; prompts that
// kill who holds them; a full disk. After every event the ledger is checked; after the last fault the run must come to
// its end.
//
// Witnesses: a token's id is the identity of the weights that drew it (the number of a training step that really was
// taken), its log-probability 0 when the worker was honest.
#pragma once
#include <cstdint>
#include <functional>
#include <map>
#include <memory>
#include <queue>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

#include "core/rng.h"
#include "rollout/worker.h"
#include "trainer/hub.h"

namespace temper::sim {

struct Violation : std::runtime_error {
  using std::runtime_error::runtime_error;
};

// What the seed decides.
struct Plan {
  StalenessLimits staleness;
  int64_t first_version = 0;
  int64_t num_prompts = 0, num_workers = 0, num_completions = 1;
  int32_t max_attempts = 5, max_leases = 2;
  bool in_flight_updates = false, evaluates = false;
  double filter_share = 0, checkpoint_share = 0.5;
  int64_t max_refills = 2;
  int64_t token_ms = 50, train_ms = 300, delay_ms = 20;
  int64_t faults_until_ms = 0;  // 0: none
  double lose = 0, duplicate = 0, damage = 0, disk_full = 0;
  int64_t num_kills = 0, num_pauses = 0, num_partitions = 0, num_restarts = 0;
  bool has_liar = false, has_stranger = false, has_poison = false;

  explicit Plan(SplitMix64& rng);
};

struct Outcome {
  int64_t num_events = 0;
  int64_t num_steps = 0;
  int64_t num_restarts = 0;
  HubCounters hub;  // of the last hub
};

class World {
 public:
  World(uint64_t seed, const RolloutRules& rules);
  Outcome run();  // Violation: what went wrong

 private:
  enum class Kind { kHonest, kLiar, kStranger };
  enum class End { kConsumed, kFiltered, kFailed };
  struct Running {
    Lease lease;
    std::vector<Completion> completions;
  };
  struct Worker {
    std::string name, route;
    Kind kind = Kind::kHonest;
    std::unique_ptr<RolloutWorker> machine;  // null: dead
    int64_t life = 0;                        // counts incarnations: events of an earlier one are void
    int64_t paused_until = 0, cut_until = 0;
    int64_t slowness = 1;
    std::map<PolicyVersion, int32_t> fetched;  // version -> identity of the weights
    int32_t weights = -1;
    std::map<int64_t, Running> running;  // by lease id
  };
  struct Checkpoint {
    PolicyVersion version = 0;
    std::vector<int32_t> history;
    int64_t cursor = 0;
    std::map<int64_t, End> ended;
  };
  struct Event {
    int64_t time = 0, order = 0;
    std::function<void()> act;
    bool operator>(const Event& other) const { return std::tie(time, order) > std::tie(other.time, other.order); }
  };

  // time and chance
  void at(int64_t time, std::function<void()> act) { events_.push({time, next_order_++, std::move(act)}); }
  void after(int64_t delay, std::function<void()> act) { at(now_ + delay, std::move(act)); }
  bool chance(double share) { return share > 0 && static_cast<double>(rng_.next() >> 11) * 0x1.0p-53 < share; }
  int64_t up_to(int64_t most) { return rng_.in_range(0, most); }
  bool faulty() const { return now_ < plan_.faults_until_ms; }
  [[noreturn]] void fail(const std::string& what) const;

  // network
  void carry(const RolloutMessage& message, std::function<void(const RolloutMessage&)> deliver);
  void flush_hub();
  void flush_worker(size_t index);
  void to_hub(const std::string& route, const RolloutMessage& message);
  void to_worker(size_t index, int64_t life, const RolloutMessage& message);

  // workers
  void start_worker(size_t index);
  void kill_worker(size_t index);
  void tick_worker(size_t index, int64_t life);
  void act(size_t index);
  void draw_token(size_t index, int64_t life, int64_t lease);
  void finish_group(size_t index, int64_t life, int64_t lease);
  void lie(const Lease& lease, GroupResult& result);

  // trainer
  void start_hub();
  void kill_hub();
  void tick_hub(int64_t epoch);
  void train();
  void take_group(RolloutGroup group);
  void step_taken(int64_t epoch);
  void request_more();

  // checks
  void check_issue(const std::string& route, const Lease& lease);
  void check_ack(const std::string& route, const Ack& ack);
  void check_ledger() const;
  void check_group(const RolloutGroup& group) const;
  void check_end() const;

  uint64_t seed_;
  RolloutRules rules_;
  SplitMix64 rng_;
  Plan plan_;
  int64_t now_ = 0;
  int64_t next_order_ = 0;
  std::priority_queue<Event, std::vector<Event>, std::greater<>> events_;
  std::vector<Worker> workers_;
  std::map<std::string, size_t> by_route_;

  std::unique_ptr<Hub> hub_;  // null: the trainer is down
  int64_t epoch_ = 0;
  int64_t paused_hub_until_ = 0;
  PolicyVersion start_version_ = 0;  // of this epoch
  bool slots_wasted_ = false;        // a batch ended short in this epoch
  std::string log_;
  size_t synced_bytes_ = 0;
  std::set<int64_t> logged_;                              // serials appended, or tried to, in this epoch
  std::map<int64_t, std::pair<int64_t, bool>> lease_of_;  // of this epoch: serial, training
  PolicyVersion version_ = 0;
  std::vector<int32_t> history_;  // identities of the weights, by version
  int32_t next_weights_ = 1;
  int64_t cursor_ = 0;
  std::set<int64_t> asked_;  // requested of this hub, not ended
  std::map<int64_t, End> ended_;
  int64_t evaluating_ = 0;  // groups outstanding
  int64_t wanted_ = 0, taken_ = 0, consumed_ = 0, refills_ = 0;
  bool training_ = false, done_ = false;
  Checkpoint checkpoint_;
  Outcome outcome_;
};

}  // namespace temper::sim
