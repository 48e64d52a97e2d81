#include "rollout/worker.h"

#include <algorithm>

namespace temper {

RolloutWorker::RolloutWorker(WorkerOptions options, const RolloutRules& rules)
    : options_(std::move(options)), rules_(rules), rng_(options_.seed) {}

// Doubles from attempt to attempt; the jitter, between half and all of it, keeps workers that lost one hub apart.
int64_t RolloutWorker::backoff_ms(int32_t num_attempts) {
  const int64_t longest =
      std::min(options_.max_backoff_ms, options_.first_backoff_ms << std::min<int32_t>(num_attempts, 20));
  return rng_.in_range(longest / 2, longest);
}

// produces: messages, actions; consumes: messages, groups, weights; waits for: nothing;
// is unblocked by: its owner's calls, tick() at least every heartbeat.
void RolloutWorker::tick(int64_t now_ms) {
  if (state_ == WorkerState::kConnecting && now_ms >= next_hello_ms_) say_hello(now_ms);
  if (state_ != WorkerState::kJoined) return;
  if (now_ms - heard_ms_ >= options_.hub_timeout_ms && rules_.say_hello_again) return connect(now_ms);
  if (now_ms >= next_heartbeat_ms_) {
    for (auto& [id, held] : held_)
      if (held.phase == Phase::kSent && now_ms - held.sent_ms >= welcome_.heartbeat_ms) send_result(id, held, now_ms);
    send_heartbeat(now_ms);
  }
  if (newest_ > std::max(version_, waiting_)) fetch(now_ms);
}

void RolloutWorker::receive(const RolloutMessage& message, int64_t now_ms) {
  if (state_ == WorkerState::kTurnedAway || state_ == WorkerState::kDone) return;
  if (const auto* welcome = std::get_if<Welcome>(&message.body)) {
    if (message.epoch >= epoch_) on(*welcome, message.epoch, now_ms);
    return;
  }
  if (message.epoch < epoch_) return;  // of a trainer that is no more
  if (const auto* refusal = std::get_if<Refusal>(&message.body)) return on(*refusal, now_ms);
  if (message.epoch > epoch_) {
    if (rules_.say_hello_again && state_ == WorkerState::kJoined) connect(now_ms);
    return;
  }
  heard_ms_ = now_ms;
  if (const auto* lease = std::get_if<Lease>(&message.body)) {
    on(*lease, now_ms);
  } else if (const auto* ack = std::get_if<Ack>(&message.body)) {
    const auto found = held_.find(ack->lease);
    if (found == held_.end() || found->second.phase != Phase::kSent) return;
    held_.erase(found);
  } else if (const auto* cancel = std::get_if<CancelLease>(&message.body)) {
    const auto found = held_.find(cancel->lease);
    if (found != held_.end() && goes_on(found->second)) stop(found->first, found->second);
  } else if (const auto* available = std::get_if<WeightsAvailable>(&message.body)) {
    offer(available->version, now_ms);
  } else if (std::holds_alternative<Goodbye>(message.body)) {
    forget_all();
    state_ = WorkerState::kDone;
  }
}

void RolloutWorker::on(const Welcome& welcome, int64_t epoch, int64_t now_ms) {
  if (epoch != epoch_) {
    // Version 7 of the new epoch need not be version 7 of the old: what the old one began is of no use.
    if (rules_.drop_old_leases) forget_all();
    if (rules_.drop_old_weights) version_ = -1;
    newest_ = waiting_ = -1;
    epoch_ = epoch;
    fetching_ = false;
    num_fetch_failures_ = 0;
    next_fetch_ms_ = now_ms;
  }
  welcome_ = welcome;
  state_ = WorkerState::kJoined;
  num_hellos_ = 0;
  heard_ms_ = now_ms;
  offer(welcome.version, now_ms);
  send_heartbeat(now_ms);
}

void RolloutWorker::on(const Refusal& refusal, int64_t now_ms) {
  switch (refusal.reason) {
    case RefusalReason::kUnknownWorker:
      if (state_ == WorkerState::kJoined && rules_.say_hello_again) connect(now_ms);
      return;
    case RefusalReason::kHubFull:
      return;  // the next hello comes later anyway
    case RefusalReason::kOtherBuild:
    case RefusalReason::kOtherModel:
    case RefusalReason::kOtherConfig:
      forget_all();
      refusal_ = refusal.text;
      state_ = WorkerState::kTurnedAway;
  }
}

void RolloutWorker::on(const Lease& lease, int64_t now_ms) {
  if (state_ != WorkerState::kJoined) return;
  if (rules_.start_leases_once && held_.contains(lease.id)) return;
  const bool can = !leaving_ && version_ >= lease.oldest_version &&
                   (!lease.exact || version_ == lease.oldest_version) && num_unfinished() < options_.max_leases;
  if (!can) return send(HandBack{lease.id, lease.partials});
  Held held;
  held.exact = lease.exact;
  held.oldest_version = lease.oldest_version;
  held.serial = lease.prompt.serial;
  held_[lease.id] = std::move(held);
  actions_.push_back(StartLease{lease});
}

void RolloutWorker::generated(int64_t lease, int64_t now_ms) {
  const auto found = held_.find(lease);
  if (found == held_.end() || found->second.phase != Phase::kGenerating) return;
  found->second.phase = Phase::kScoring;
  use_waiting_weights(now_ms);
}

void RolloutWorker::finished(int64_t lease, PackedCompletions completions, int64_t now_ms) {
  const auto found = held_.find(lease);
  if (found == held_.end()) return;
  found->second.phase = Phase::kSent;
  found->second.completions = std::move(completions);
  send_result(lease, found->second, now_ms);
  use_waiting_weights(now_ms);
}

void RolloutWorker::handed_back(int64_t lease, std::vector<Completion> completions, int64_t now_ms) {
  if (held_.erase(lease) == 0) return;
  send(HandBack{lease, std::move(completions)});
  use_waiting_weights(now_ms);
  if (leaving_ && held_.empty()) {
    send(Goodbye{});
    state_ = WorkerState::kDone;
  }
}

// ---- leases ----

void RolloutWorker::stop(int64_t lease, Held& held) {
  held.phase = Phase::kStopping;
  actions_.push_back(StopLease{lease});
}

void RolloutWorker::forget_all() {
  for (const auto& [id, held] : held_)
    if (held.phase != Phase::kSent) actions_.push_back(ForgetLease{id});
  held_.clear();
}

void RolloutWorker::leave() {
  if (leaving_ || state_ == WorkerState::kTurnedAway || state_ == WorkerState::kDone) return;
  leaving_ = true;
  for (auto held = held_.begin(); held != held_.end();) {
    if (held->second.phase == Phase::kSent) {
      held = held_.erase(held);  // sent at least once; if it was lost, the hub gives the prompt out again
      continue;
    }
    if (goes_on(held->second)) stop(held->first, held->second);
    ++held;
  }
  if (held_.empty()) {
    send(Goodbye{});
    state_ = WorkerState::kDone;
  }
}

int64_t RolloutWorker::num_unfinished() const {
  return std::count_if(held_.begin(), held_.end(), [](const auto& held) { return held.second.phase != Phase::kSent; });
}

// ---- weights ----

void RolloutWorker::offer(PolicyVersion version, int64_t now_ms) {
  newest_ = std::max(newest_, version);
  if (newest_ > std::max(version_, waiting_)) fetch(now_ms);
}

void RolloutWorker::fetch(int64_t now_ms) {
  if (fetching_ || now_ms < next_fetch_ms_) return;
  fetching_ = true;
  actions_.push_back(FetchWeights{epoch_, newest_});
}

void RolloutWorker::fetched(int64_t epoch, PolicyVersion version, int64_t now_ms) {
  if (epoch != epoch_ || !fetching_) return;
  fetching_ = false;
  num_fetch_failures_ = 0;
  waiting_ = version;
  // A lease that needs exactly the old weights while there are new ones has been given to another, or will be refused.
  for (auto& [id, held] : held_)
    if (goes_on(held) && held.exact && held.oldest_version != version) stop(id, held);
  use_waiting_weights(now_ms);
}

void RolloutWorker::fetch_failed(int64_t now_ms) {
  fetching_ = false;
  next_fetch_ms_ = now_ms + backoff_ms(num_fetch_failures_++);
}

void RolloutWorker::use_waiting_weights(int64_t now_ms) {
  if (waiting_ <= version_) return;
  const bool between_groups = !options_.in_flight_updates && rules_.wait_for_swap;
  const auto bars = [&](const auto& entry) {
    const Held& held = entry.second;
    const bool may_draw = held.phase == Phase::kGenerating || held.phase == Phase::kStopping;
    // Exact leases that are being stopped may still run: they must not see the new weights.
    return may_draw && (between_groups || (held.phase == Phase::kStopping && held.exact));
  };
  if (std::any_of(held_.begin(), held_.end(), bars)) {
    if (between_groups) send_heartbeat(now_ms);  // no credits until it is
    return;
  }
  version_ = waiting_;
  waiting_ = -1;
  actions_.push_back(UseWeights{version_});
  send_heartbeat(now_ms);
}

// ---- contact with the hub ----

void RolloutWorker::connect(int64_t now_ms) {
  state_ = WorkerState::kConnecting;
  next_hello_ms_ = now_ms + backoff_ms(0);
  num_hellos_ = 1;
}

void RolloutWorker::say_hello(int64_t now_ms) {
  outbox_.push_back({0, Hello{options_.name, options_.build, options_.model, options_.config}});
  next_hello_ms_ = now_ms + backoff_ms(num_hellos_++);
}

void RolloutWorker::send_heartbeat(int64_t now_ms) {
  if (state_ != WorkerState::kJoined) return;
  const bool swapping = waiting_ > version_;
  Heartbeat heartbeat{version_, leaving_ || swapping ? 0 : options_.max_leases, {}};
  for (const auto& [id, held] : held_) heartbeat.leases.push_back(id);
  send(std::move(heartbeat));
  next_heartbeat_ms_ = now_ms + welcome_.heartbeat_ms;
}

void RolloutWorker::send_result(int64_t lease, Held& held, int64_t now_ms) {
  if (state_ != WorkerState::kJoined) return;  // sent after the Welcome, at the next heartbeat
  held.sent_ms = now_ms;
  send(GroupResult{lease, held.serial, held.completions});
}

}  // namespace temper
