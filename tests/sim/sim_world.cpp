#include "tests/sim/sim_world.h"

#include <algorithm>

#include "core/error.h"

namespace temper::sim {
namespace {

constexpr int64_t kHeartbeatMs = 500;
constexpr int64_t kTickMs = 250;
constexpr int64_t kMostMs = 900'000;  // after the faults; the slowest good schedules take a third of it
constexpr int64_t kMostEvents = 200'000;

// Lengths depend on the prompt alone, as draws do.
int64_t length_of(int64_t serial, int64_t completion) { return 1 + (serial * 7 + completion * 3) % 3; }

Prompt prompt_of(int64_t serial) {
  Prompt prompt;
  prompt.serial = prompt.line = serial;
  prompt.token_ids = {static_cast<int32_t>(serial), 1};
  return prompt;
}

}  // namespace

Plan::Plan(SplitMix64& rng) {
  const auto pick = [&rng](int64_t lo, int64_t hi) { return rng.in_range(lo, hi); };
  const auto one_in = [&rng](int64_t n) { return rng.in_range(1, n) == 1; };
  staleness.max_staleness = pick(0, 3);
  staleness.groups_per_step = pick(1, 4);
  staleness.max_concurrent = one_in(3) ? pick(1, 4) : 100;
  staleness.policy = one_in(2) ? StalenessPolicy::kWait : StalenessPolicy::kDrop;
  first_version = one_in(3) ? pick(1, 5) : 0;
  num_prompts = pick(4, 20);
  num_workers = pick(1, 4);
  num_completions = pick(1, 2);
  max_attempts = static_cast<int32_t>(pick(2, 6));
  max_leases = static_cast<int32_t>(pick(1, 4));
  in_flight_updates = one_in(2);
  evaluates = one_in(4);
  filter_share = one_in(3) ? 0.3 : 0;
  checkpoint_share = one_in(2) ? 0.3 : 0.8;
  token_ms = pick(10, 200);
  train_ms = pick(50, 600);
  delay_ms = one_in(4) ? pick(100, 800) : pick(1, 30);
  if (one_in(10)) return;  // a schedule without faults
  faults_until_ms = pick(1000, 12000);
  if (one_in(2)) lose = 0.05;
  if (one_in(2)) duplicate = 0.1;
  if (one_in(4)) damage = 0.02;
  if (one_in(6)) disk_full = 0.2;
  num_kills = pick(0, 3);
  num_pauses = pick(0, 3);
  num_partitions = pick(0, 2);
  num_restarts = one_in(4) ? pick(2, 5) : pick(0, 1);
  has_liar = one_in(5);
  has_stranger = one_in(5);
  has_poison = one_in(8);
}

World::World(uint64_t seed, const RolloutRules& rules)
    : seed_(seed), rules_(rules), rng_(seed * 0x9E3779B97F4A7C15u + 1), plan_(rng_) {
  version_ = plan_.first_version;
  while (static_cast<int64_t>(history_.size()) <= version_) history_.push_back(next_weights_++);
  checkpoint_ = {version_, history_, 0, {}};
  workers_.resize(static_cast<size_t>(plan_.num_workers + (plan_.has_liar ? 1 : 0) + (plan_.has_stranger ? 1 : 0)));
  for (size_t i = 0; i < workers_.size(); ++i) {
    workers_[i].name = format("worker{}", i);
    workers_[i].slowness = chance(0.2) ? 8 : 1;
  }
  if (plan_.has_stranger) workers_.back().kind = Kind::kStranger;
  if (plan_.has_liar) workers_[workers_.size() - (plan_.has_stranger ? 2 : 1)].kind = Kind::kLiar;
}

void World::fail(const std::string& what) const {
  throw Violation(format("seed {}, {} ms, epoch {}, version {}: {}", seed_, now_, epoch_, version_, what));
}

Outcome World::run() {
  start_hub();
  for (size_t i = 0; i < workers_.size(); ++i) at(up_to(200), [this, i] { start_worker(i); });
  const auto some_time = [this] { return up_to(plan_.faults_until_ms); };
  const auto any = [this] { return static_cast<size_t>(up_to(static_cast<int64_t>(workers_.size()) - 1)); };
  for (int64_t k = 0; k < plan_.num_kills; ++k)
    at(some_time(), [this, i = any()] {
      if (workers_[i].machine && chance(0.5)) {  // it leaves in order
        workers_[i].machine->leave();
        flush_worker(i);
      }
      kill_worker(i);
      after(up_to(3000), [this, i] { start_worker(i); });
    });
  for (int64_t k = 0; k < plan_.num_pauses; ++k)
    at(some_time(),
       [this, i = any()] { (chance(0.2) ? paused_hub_until_ : workers_[i].paused_until) = now_ + up_to(6000); });
  for (int64_t k = 0; k < plan_.num_partitions; ++k)
    at(some_time(), [this, i = any()] { workers_[i].cut_until = now_ + up_to(6000); });
  for (int64_t k = 0; k < plan_.num_restarts; ++k)
    at(some_time(), [this] {
      if (!hub_) return;
      kill_hub();
      after(up_to(2000), [this] { start_hub(); });
    });
  if (plan_.has_liar)
    at(plan_.faults_until_ms, [this] {
      for (size_t i = 0; i < workers_.size(); ++i)
        if (workers_[i].kind == Kind::kLiar) {
          kill_worker(i);
          workers_[i].kind = Kind::kHonest;
          start_worker(i);
        }
    });
  while (!done_) {
    if (events_.empty() || now_ > plan_.faults_until_ms + kMostMs || outcome_.num_events > kMostEvents)
      fail(format("no end: {} prompts of {} have ended", ended_.size(), plan_.num_prompts));
    Event event = std::move(const_cast<Event&>(events_.top()));
    events_.pop();
    now_ = event.time;
    event.act();
    ++outcome_.num_events;
    check_ledger();
  }
  check_end();
  outcome_.hub = hub_->counters();
  return outcome_;
}

// ---- network ----

void World::carry(const RolloutMessage& message, std::function<void(const RolloutMessage&)> deliver) {
  std::string bytes = encode(message);
  if (faulty() && chance(plan_.lose)) return;
  if (faulty() && chance(plan_.damage)) {
    bytes[static_cast<size_t>(up_to(static_cast<int64_t>(bytes.size()) - 1))] ^= static_cast<char>(1 << up_to(7));
    if (chance(0.3)) bytes.resize(static_cast<size_t>(up_to(static_cast<int64_t>(bytes.size()) - 1)));
    try {
      decode_rollout_message(bytes);
    } catch (const FormatError&) {
      return;  // refused: as good as lost
    }
    fail("a damaged message was read");
  }
  for (int copies = faulty() && chance(plan_.duplicate) ? 2 : 1; copies > 0; --copies)
    after(1 + up_to(plan_.delay_ms), [bytes, deliver] { deliver(decode_rollout_message(bytes)); });
}

void World::flush_hub() {
  train();
  if (!hub_) return;
  for (Hub::Outgoing& out : hub_->take_outbox()) {
    const auto found = by_route_.find(out.route);
    if (found == by_route_.end()) continue;
    const size_t index = found->second;
    if (const auto* lease = std::get_if<Lease>(&out.message.body)) check_issue(out.route, *lease);
    if (const auto* ack = std::get_if<Ack>(&out.message.body)) check_ack(out.route, *ack);
    if (workers_[index].cut_until > now_) continue;
    carry(out.message, [this, index, life = workers_[index].life](const RolloutMessage& message) {
      to_worker(index, life, message);
    });
  }
}

void World::flush_worker(size_t index) {
  act(index);
  Worker& worker = workers_[index];
  if (!worker.machine) return;
  for (RolloutMessage& message : worker.machine->take_outbox()) {
    if (worker.cut_until > now_) continue;
    auto* result = std::get_if<GroupResult>(&message.body);
    if (result != nullptr && worker.kind == Kind::kLiar && worker.running.contains(result->lease))
      lie(worker.running.at(result->lease).lease, *result);
    carry(message, [this, route = worker.route](const RolloutMessage& arrived) { to_hub(route, arrived); });
  }
}

void World::to_hub(const std::string& route, const RolloutMessage& message) {
  if (!hub_) return;
  if (paused_hub_until_ > now_) return at(paused_hub_until_, [this, route, message] { to_hub(route, message); });
  hub_->receive(route, message, now_);
  flush_hub();
}

void World::to_worker(size_t index, int64_t life, const RolloutMessage& message) {
  Worker& worker = workers_[index];
  if (worker.life != life || !worker.machine) return;
  if (worker.paused_until > now_)
    return at(worker.paused_until, [this, index, life, message] { to_worker(index, life, message); });
  worker.machine->receive(message, now_);
  flush_worker(index);
}

// ---- workers ----

void World::start_worker(size_t index) {
  Worker& worker = workers_[index];
  if (worker.machine) return;
  ++worker.life;
  worker.route = format("{}/{}", worker.name, worker.life);
  by_route_[worker.route] = index;
  worker.weights = -1;
  WorkerOptions options{.name = worker.name, .build = "b1", .model = "m1", .config = "c1"};
  if (worker.kind == Kind::kStranger) {
    std::string* identities[] = {&options.build, &options.model, &options.config};
    *identities[seed_ % 3] = "other";
  }
  options.max_leases = plan_.max_leases;
  options.in_flight_updates = plan_.in_flight_updates;
  options.hub_timeout_ms = 2000;
  options.max_backoff_ms = 1500;
  options.seed = seed_ + index;
  worker.machine = std::make_unique<RolloutWorker>(options, rules_);
  tick_worker(index, worker.life);
}

void World::kill_worker(size_t index) {
  Worker& worker = workers_[index];
  worker.machine.reset();
  worker.running.clear();
  worker.fetched.clear();
}

void World::tick_worker(size_t index, int64_t life) {
  Worker& worker = workers_[index];
  if (worker.life != life || !worker.machine) return;
  if (worker.paused_until <= now_) {
    worker.machine->tick(now_);
    flush_worker(index);
  }
  after(kTickMs, [this, index, life] { tick_worker(index, life); });
}

void World::act(size_t index) {
  Worker& worker = workers_[index];
  if (!worker.machine) return;
  const int64_t life = worker.life;
  for (WorkerAction& action : worker.machine->take_actions()) {
    if (auto* start = std::get_if<StartLease>(&action)) {
      const int64_t id = start->lease.id;
      if (worker.running.contains(id) && rules_.drop_old_leases) fail(format("lease {} was started twice", id));
      Running running{start->lease, start->lease.partials};
      running.completions.resize(static_cast<size_t>(start->lease.num_completions));
      worker.running[id] = std::move(running);
      after(1 + up_to(plan_.token_ms * worker.slowness), [this, index, life, id] { draw_token(index, life, id); });
    } else if (auto* stop = std::get_if<StopLease>(&action)) {
      std::vector<Completion> completions = std::move(worker.running[stop->lease].completions);
      if (!completions.empty() && !completions.back().rewards.empty()) completions.clear();  // being scored
      worker.running.erase(stop->lease);
      worker.machine->handed_back(stop->lease, std::move(completions), now_);
    } else if (auto* forget = std::get_if<ForgetLease>(&action)) {
      worker.running.erase(forget->lease);
    } else if (auto* use = std::get_if<UseWeights>(&action)) {
      const auto generating = std::any_of(worker.running.begin(), worker.running.end(), [&](const auto& running) {
        return running.second.lease.exact && running.second.lease.oldest_version != use->version;
      });
      const int64_t unfinished = std::count_if(worker.running.begin(), worker.running.end(), [](const auto& running) {
        return running.second.completions.back().rewards.empty();
      });
      if (!plan_.in_flight_updates && unfinished > 0) fail("weights changed while something was generated");
      if (generating && unfinished > 0) fail("an exact lease saw new weights");
      worker.weights = worker.fetched.at(use->version);
    } else if (std::get_if<FetchWeights>(&action) != nullptr) {
      after(10 + up_to(300 * worker.slowness), [this, index, life] {
        Worker& fetcher = workers_[index];
        if (fetcher.life != life || !fetcher.machine) return;
        if (!hub_ || (faulty() && chance(0.1))) {
          fetcher.machine->fetch_failed(now_);
        } else {
          fetcher.fetched[version_] = history_.back();
          fetcher.machine->fetched(epoch_, version_, now_);
        }
        flush_worker(index);
      });
    }
  }
  // What was done may ask for more (a lease handed back lets new weights in).
  if (auto more = worker.machine->take_actions(); !more.empty()) {
    for (WorkerAction& action : more)
      if (auto* use = std::get_if<UseWeights>(&action)) worker.weights = worker.fetched.at(use->version);
  }
}

void World::draw_token(size_t index, int64_t life, int64_t id) {
  Worker& worker = workers_[index];
  if (worker.life != life || !worker.machine) return;
  if (worker.paused_until > now_)
    return at(worker.paused_until, [this, index, life, id] { draw_token(index, life, id); });
  const auto found = worker.running.find(id);
  if (found == worker.running.end()) return;
  Running& running = found->second;
  const int64_t serial = running.lease.prompt.serial;
  if (plan_.has_poison && serial == plan_.num_prompts / 2 && running.lease.purpose == RolloutPurpose::kTrain) {
    kill_worker(index);
    return after(up_to(1000), [this, index] { start_worker(index); });
  }
  for (size_t c = 0; c < running.completions.size(); ++c) {
    Completion& completion = running.completions[c];
    if (static_cast<int64_t>(completion.token_ids.size()) == length_of(serial, static_cast<int64_t>(c))) continue;
    completion.token_ids.push_back(worker.weights);
    completion.policy_versions.push_back(worker.machine->version());
    completion.logprobs.push_back(worker.kind == Kind::kStranger ? 2 : 0);
    completion.behavior_logprobs.push_back(0);
    completion.mask.push_back(1);
    return after(1 + up_to(plan_.token_ms * worker.slowness), [this, index, life, id] { draw_token(index, life, id); });
  }
  for (Completion& completion : running.completions) completion.rewards = {1.0};  // marks it as generated
  worker.machine->generated(id, now_);
  flush_worker(index);
  if (chance(0.5)) return finish_group(index, life, id);
  after(up_to(4 * plan_.token_ms * worker.slowness), [this, index, life, id] { finish_group(index, life, id); });
}

void World::finish_group(size_t index, int64_t life, int64_t id) {
  Worker& worker = workers_[index];
  if (worker.life != life || !worker.machine || !worker.running.contains(id)) return;
  if (worker.paused_until > now_)
    return at(worker.paused_until, [this, index, life, id] { finish_group(index, life, id); });
  std::vector<Completion> completions = worker.running.at(id).completions;
  if (completions.back().rewards.empty()) return;  // another lease of this number, of a new epoch
  worker.machine->finished(id, std::move(completions), now_);
  flush_worker(index);
  if (worker.machine) worker.running.erase(id);
}

void World::lie(const Lease& lease, GroupResult& result) {
  if (chance(0.4)) return;
  std::vector<Completion> completions = result.completions.unpack();
  Completion& first = completions.front();
  switch (up_to(4)) {
    case 0:
      first.policy_versions.front() = lease.oldest_version > 0 ? lease.oldest_version - 1 : lease.oldest_version + 1000;
      break;
    case 1:
      first.policy_versions.front() = lease.oldest_version + 1000;
      break;
    case 2:
      completions.push_back(first);
      break;
    case 3:
      first.rewards.clear();
      break;
    default:
      first.token_ids.front() = -5;
  }
  for (Completion& completion : completions) std::fill(completion.logprobs.begin(), completion.logprobs.end(), 1);
  result.completions = completions;
}

// ---- trainer ----

void World::start_hub() {
  version_ = start_version_ = checkpoint_.version;
  history_ = checkpoint_.history;
  cursor_ = checkpoint_.cursor;
  ended_ = checkpoint_.ended;
  LogContents contents = read_group_log(log_, version_, rules_);
  epoch_ = contents.last_epoch + 1;
  if (rules_.replay_own_history && chance(0.5)) {  // as GroupLog does; the log of the other branch only grows
    log_.clear();
    for (const LoggedGroup& group : contents.groups) log_ += group_record(group);
  } else {
    log_.resize(contents.valid_bytes);
  }
  log_ += start_record(epoch_, version_);
  synced_bytes_ = log_.size();
  HubOptions options;
  options.build = "b1";
  options.model = "m1";
  options.config = "c1";
  options.epoch = epoch_;
  options.staleness = plan_.staleness;
  options.heartbeat_ms = kHeartbeatMs;
  options.worker_timeout_ms = 2000;
  // Short enough, in some schedules with faults, for slow workers to be late.
  options.lease_timeout_ms = plan_.faults_until_ms > 0 && seed_ % 3 == 0 ? 4000 : 60'000;
  options.unnamed_after_ms = 1500;
  options.max_attempts = plan_.max_attempts;
  options.num_rewards = 1;
  const auto append = [this](const LoggedGroup& group) {
    logged_.insert(group.serial);
    if (faulty() && chance(plan_.disk_full)) return false;
    log_ += group_record(group);
    return true;
  };
  hub_ = std::make_unique<Hub>(options, version_, std::move(contents.groups), append, rules_);
  logged_.clear();
  lease_of_.clear();
  asked_.clear();
  evaluating_ = 0;
  slots_wasted_ = training_ = false;
  taken_ = consumed_ = refills_ = 0;
  wanted_ = plan_.staleness.groups_per_step;
  std::vector<Prompt> prompts;
  for (int64_t serial = 0; serial < cursor_; ++serial)
    if (!ended_.contains(serial)) {
      prompts.push_back(prompt_of(serial));
      asked_.insert(serial);
    }
  hub_->request(std::move(prompts), static_cast<int>(plan_.num_completions), {}, RolloutPurpose::kTrain);
  tick_hub(epoch_);
}

void World::kill_hub() {
  hub_.reset();
  ++outcome_.num_restarts;
  // The machine went down with it: what was not synced may be cut anywhere.
  if (chance(0.5))
    log_.resize(synced_bytes_ + static_cast<size_t>(up_to(static_cast<int64_t>(log_.size() - synced_bytes_))));
}

void World::tick_hub(int64_t epoch) {
  if (!hub_ || epoch != epoch_) return;
  if (paused_hub_until_ <= now_) {
    hub_->tick(now_);
    if (chance(0.3)) synced_bytes_ = log_.size();
    flush_hub();
  }
  after(kTickMs, [this, epoch] { tick_hub(epoch); });
}

void World::request_more() {
  const int64_t ahead = (plan_.staleness.max_staleness + 1) * plan_.staleness.groups_per_step + 2;
  std::vector<Prompt> prompts;
  while (cursor_ < plan_.num_prompts && static_cast<int64_t>(asked_.size()) < ahead) {
    asked_.insert(cursor_);
    prompts.push_back(prompt_of(cursor_++));
  }
  if (!prompts.empty())
    hub_->request(std::move(prompts), static_cast<int>(plan_.num_completions), {}, RolloutPurpose::kTrain);
}

// Takes what there is; a full batch is trained on for a while.
void World::train() {
  if (!hub_ || training_ || done_) return;
  request_more();
  while (taken_ < wanted_ || evaluating_ > 0) {
    std::optional<HubGroup> group = hub_->take();
    if (!group) break;
    take_group(std::move(*group).unpack());
    request_more();
  }
  hub_->tick(now_);
  const bool all = asked_.empty() && cursor_ == plan_.num_prompts;
  if (evaluating_ > 0 || (taken_ < wanted_ && !all)) return;
  if (taken_ == 0) {
    done_ = true;
    return;
  }
  slots_wasted_ = slots_wasted_ || consumed_ < plan_.staleness.groups_per_step;
  training_ = true;
  after(1 + up_to(plan_.train_ms), [this, epoch = epoch_] { step_taken(epoch); });
}

void World::take_group(RolloutGroup group) {
  check_group(group);
  if (group.purpose != RolloutPurpose::kTrain) {
    --evaluating_;
    return;
  }
  const int64_t serial = group.prompt.serial;
  if (asked_.erase(serial) == 0 || ended_.contains(serial)) fail(format("prompt {} ended twice", serial));
  ++taken_;
  if (!group.completions.front().error.empty()) {
    ended_[serial] = End::kFailed;
  } else if (chance(plan_.filter_share)) {
    ended_[serial] = End::kFiltered;
    hub_->filtered();
    if (refills_ < plan_.max_refills) {
      ++refills_;
      ++wanted_;
    }
  } else {
    ended_[serial] = End::kConsumed;
    ++consumed_;
  }
}

void World::step_taken(int64_t epoch) {
  if (!hub_ || epoch != epoch_) return;
  if (paused_hub_until_ > now_) return at(paused_hub_until_, [this, epoch] { step_taken(epoch); });
  training_ = false;
  taken_ = consumed_ = refills_ = 0;
  wanted_ = plan_.staleness.groups_per_step;
  history_.push_back(next_weights_++);
  hub_->publish(++version_);
  ++outcome_.num_steps;
  if (chance(plan_.checkpoint_share)) {
    checkpoint_ = {version_, history_, cursor_, ended_};
    const std::vector<int64_t> unended = hub_->unended();
    if (std::set<int64_t>(unended.begin(), unended.end()) != asked_) fail("a checkpoint would lose prompts");
  }
  if (plan_.evaluates && chance(0.3)) {
    evaluating_ = 2;
    hub_->request({prompt_of(0), prompt_of(1)}, 1, {}, RolloutPurpose::kEval);
  }
  flush_hub();
}

// ---- checks ----

void World::check_issue(const std::string& route, const Lease& lease) {
  const bool training = lease.purpose == RolloutPurpose::kTrain;
  lease_of_[lease.id] = {lease.prompt.serial, training};
  const bool exact = !training || plan_.staleness.max_staleness == 0;
  if (lease.exact != exact) fail("a lease is exact when it should not be, or the other way round");
  if (exact && lease.oldest_version != version_) fail(format("an exact lease for version {}", lease.oldest_version));
  if (lease.oldest_version < version_ - plan_.staleness.max_staleness)
    fail(format("a lease allows version {}", lease.oldest_version));
  if (const auto begun = version_span(lease.partials))
    if (begun->oldest < lease.oldest_version || (exact && begun->newest != version_))
      fail(format("partial completions of version {} under a lease from {}", begun->oldest, lease.oldest_version));
  const Worker& worker = workers_[by_route_.at(route)];
  if (worker.route == route && worker.machine && worker.machine->epoch() == epoch_ &&
      worker.machine->version() < lease.oldest_version)
    fail(format("a lease from version {} goes to a worker at {}", lease.oldest_version, worker.machine->version()));
  if (worker.kind == Kind::kStranger) fail("a worker of another build got a lease");
}

void World::check_ack(const std::string& route, const Ack& ack) {
  const Worker& worker = workers_[by_route_.at(route)];
  if (ack.verdict == ResultVerdict::kInvalid && worker.kind == Kind::kHonest && worker.route == route)
    fail(format("the group of an honest worker under lease {} was refused", ack.lease));
  if (ack.verdict != ResultVerdict::kAccepted) return;
  const auto lease = lease_of_.find(ack.lease);
  if (lease == lease_of_.end()) fail(format("a group under lease {} of another epoch was accepted", ack.lease));
  const auto [serial, training] = lease->second;
  if (training && !logged_.contains(serial)) fail(format("group {} was acknowledged before it was logged", serial));
}

// Every prompt that was asked for and has not ended is in the hub once, in the state that leases and buffer agree on.
void World::check_ledger() const {
  if (!hub_) return;
  const std::vector<int64_t> unended = hub_->unended();
  if (!std::equal(unended.begin(), unended.end(), asked_.begin(), asked_.end()))
    fail(format("{} prompts are in the hub, {} should be", unended.size(), asked_.size()));
  int64_t leased = 0, running = 0, finished = 0;
  for (const LedgerLine& line : hub_->ledger()) {
    leased += line.state == PromptState::kLeased;
    if (line.purpose != RolloutPurpose::kTrain) continue;
    running += line.state == PromptState::kLeased;
    finished += line.state == PromptState::kFinished;
  }
  const GroupBuffer& buffer = hub_->buffer();
  if (leased != hub_->num_leases()) fail(format("{} prompts are leased by {} leases", leased, hub_->num_leases()));
  if (running != buffer.num_running() || finished != buffer.num_finished())
    fail(format("{} training prompts are leased and {} finished, the buffer counts {} and {}", running, finished,
                buffer.num_running(), buffer.num_finished()));
  const StalenessLimits& limits = plan_.staleness;
  const int64_t begun = buffer.num_in_batches() + finished + running;
  if (running > limits.max_concurrent ||
      begun > (limits.max_staleness + version_ - start_version_ + 1) * limits.groups_per_step)
    fail(format("{} groups run, {} were begun in all: more than may be", running, begun));
  if (limits.policy == StalenessPolicy::kWait && !slots_wasted_ && hub_->counters().num_dropped_stale > 0)
    fail("a group became too old though steps wait for such");
  if (plan_.faults_until_ms == 0 && hub_->counters().num_failed > 0) fail("a prompt failed without a fault");
}

void World::check_group(const RolloutGroup& group) const {
  if (!group.completions.front().error.empty()) return;
  const bool training = group.purpose == RolloutPurpose::kTrain;
  const auto expected = static_cast<size_t>(training ? plan_.num_completions : 1);
  if (group.completions.size() != expected) fail("a group has too many or too few completions");
  const int64_t most = training ? plan_.staleness.max_staleness : 0;
  for (size_t c = 0; c < group.completions.size(); ++c) {
    const Completion& completion = group.completions[c];
    if (static_cast<int64_t>(completion.token_ids.size()) != length_of(group.prompt.serial, static_cast<int64_t>(c)))
      fail(format("completion {} of prompt {} is not whole", c, group.prompt.serial));
    for (size_t t = 0; t < completion.token_ids.size(); ++t) {
      const PolicyVersion version = completion.policy_versions[t];
      if (completion.logprobs[t] != 0) fail("a group of a worker that lies or is of another build was taken");
      if (version > version_ || version_ - version > most)
        fail(format("prompt {}: a token of version {} is in a batch", group.prompt.serial, version));
      if (history_[static_cast<size_t>(version)] != completion.token_ids[t])
        fail(format("prompt {}: a token of version {} is of another history", group.prompt.serial, version));
    }
  }
}

void World::check_end() const {
  if (static_cast<int64_t>(ended_.size()) != plan_.num_prompts) fail("prompts are missing at the end");
  if (!hub_->idle()) fail("the hub still holds prompts at the end");
}

}  // namespace temper::sim
