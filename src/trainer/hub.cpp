#include "trainer/hub.h"

#include <algorithm>

#include "core/error.h"

namespace temper {

Hub::Hub(HubOptions options, PolicyVersion version, std::vector<LoggedGroup> replay, AppendToLog append_to_log,
         const RolloutRules& rules)
    : options_(std::move(options)),
      rules_(rules),
      buffer_(options_.staleness, version, rules),
      append_to_log_(std::move(append_to_log)) {
  for (LoggedGroup& group : replay) replay_[group.serial] = std::move(group);
}

// ---- the trainer's side ----

void Hub::request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                  RolloutPurpose purpose) {
  for (Prompt& prompt : prompts) {
    const int64_t ticket = next_ticket_++;
    Entry entry;
    entry.prompt = std::move(prompt);
    entry.purpose = purpose;
    entry.num_completions = num_completions;
    entry.sampling = sampling;
    if (is_training(entry)) {
      const bool is_new = tickets_.emplace(entry.prompt.serial, ticket).second;
      TEMPER_CHECK(is_new, "prompt {} was asked for twice", entry.prompt.serial);
    }
    if (purpose == RolloutPurpose::kEval) ++num_eval_;
    queue_of(entry).insert(ticket);
    entries_.emplace(ticket, std::move(entry));
  }
}

RolloutGroup HubGroup::unpack() && {
  RolloutGroup group;
  group.prompt = std::move(prompt);
  group.purpose = purpose;
  group.completions = completions.unpack();
  return group;
}

std::optional<HubGroup> Hub::take() {
  const auto wanted = std::find_if(outcomes_.begin(), outcomes_.end(), [this](const HubGroup& group) {
    return num_eval_ == 0 || group.purpose == RolloutPurpose::kEval;
  });
  if (wanted != outcomes_.end()) {
    HubGroup group = std::move(*wanted);
    outcomes_.erase(wanted);
    if (group.purpose == RolloutPurpose::kEval) --num_eval_;
    return group;
  }
  if (num_eval_ > 0) return std::nullopt;
  std::vector<GroupBuffer::Finished> dropped;
  std::optional<GroupBuffer::Finished> taken = buffer_.take(dropped);
  for (const GroupBuffer::Finished& group : dropped) drop(group.ticket);
  if (!taken) return std::nullopt;
  ++counters_.num_consumed;
  const auto entry = entries_.find(taken->ticket);
  HubGroup group{std::move(entry->second.prompt), entry->second.purpose, std::move(taken->completions)};
  tickets_.erase(group.prompt.serial);
  entries_.erase(entry);
  return group;
}

void Hub::filtered(int64_t count) {
  for (; count > 0; --count) {
    buffer_.filtered();
    --counters_.num_consumed;
    ++counters_.num_filtered;
  }
}

void Hub::publish(PolicyVersion version) {
  buffer_.advance(version);
  cancel_lost_leases();
  for (const auto& [route, worker] : workers_) send(route, WeightsAvailable{version});
}

void Hub::finish() {
  for (const auto& [route, worker] : workers_) send(route, Goodbye{});
}

std::vector<int64_t> Hub::unended() const {
  std::vector<int64_t> serials;
  for (const auto& [serial, ticket] : tickets_) serials.push_back(serial);
  for (const HubGroup& group : outcomes_)  // failed, and not told to the trainer yet
    if (group.purpose == RolloutPurpose::kTrain) serials.push_back(group.prompt.serial);
  std::sort(serials.begin(), serials.end());
  return serials;
}

// What no step can take is not worth finishing.
void Hub::cancel_lost_leases() {
  std::vector<int64_t> lost;
  for (const auto& [id, lease] : leases_)
    if (is_training(entries_.at(lease.ticket)) && buffer_.is_lost(lease.floor)) lost.push_back(id);
  for (const int64_t id : lost) {
    const auto lease = leases_.find(id);
    const int64_t ticket = lease->second.ticket;
    send(lease->second.route, CancelLease{id});
    buffer_.give_up(lease->second.floor);
    end_lease(lease);
    drop(ticket);
  }
}

// ---- the workers' side ----

void Hub::receive(const std::string& route, RolloutMessage message, int64_t now_ms) {
  now_ms_ = now_ms;
  if (const auto* hello = std::get_if<Hello>(&message.body)) {
    on(route, *hello, now_ms);
    return give_out(now_ms);
  }
  auto* result = std::get_if<GroupResult>(&message.body);
  if (message.epoch != options_.epoch && rules_.fence_epochs) {
    if (result != nullptr) {
      ++counters_.num_results_refused[static_cast<size_t>(ResultVerdict::kOldEpoch)];
      send(route, Ack{result->lease, ResultVerdict::kOldEpoch});
    } else {
      ++counters_.num_old_epoch;
    }
    send(route, Refusal{RefusalReason::kUnknownWorker, "the trainer has started anew"});
    return;
  }
  const auto found = workers_.find(route);
  if (found == workers_.end()) {
    // A result counts by its lease, whoever brings it; a worker that is not known must come in first.
    if (result != nullptr) on(route, *result);
    if (!std::holds_alternative<Goodbye>(message.body))
      send(route, Refusal{RefusalReason::kUnknownWorker, "say hello first"});
    return give_out(now_ms);
  }
  Worker& worker = found->second;
  worker.last_seen_ms = now_ms;
  if (const auto* heartbeat = std::get_if<Heartbeat>(&message.body)) {
    on(route, worker, *heartbeat, now_ms);
  } else if (result != nullptr) {
    on(route, *result);
  } else if (auto* back = std::get_if<HandBack>(&message.body)) {
    on(route, *back);
  } else if (std::holds_alternative<Goodbye>(message.body)) {
    lose_worker(route, "its worker left");
  }
  give_out(now_ms);
}

std::optional<Refusal> Hub::refuse(const Hello& hello) const {
  const auto differ = [](RefusalReason reason, const char* what, const std::string& theirs, const std::string& ours) {
    return Refusal{reason, format("the worker's {} is {}, the trainer's {}. Start the worker with the trainer's "
                                  "program, model and configuration.",
                                  what, theirs, ours)};
  };
  if (hello.build != options_.build && rules_.same_build)
    return differ(RefusalReason::kOtherBuild, "build", hello.build, options_.build);
  if (hello.model != options_.model && rules_.same_model)
    return differ(RefusalReason::kOtherModel, "model", hello.model, options_.model);
  if (hello.config != options_.config && rules_.same_config)
    return differ(RefusalReason::kOtherConfig, "configuration", hello.config, options_.config);
  if (num_workers() >= options_.max_workers)
    return Refusal{RefusalReason::kHubFull, format("there are {} workers already", num_workers())};
  return std::nullopt;
}

void Hub::on(const std::string& route, const Hello& hello, int64_t now_ms) {
  if (workers_.contains(route)) {
    workers_[route].last_seen_ms = now_ms;  // it has lost sight of us, not we of it: its leases go on
  } else {
    if (const auto refusal = refuse(hello)) {
      ++counters_.num_workers_refused;
      return send(route, *refusal);
    }
    const auto earlier = routes_.find(hello.name);
    if (earlier != routes_.end()) lose_worker(std::string(earlier->second), "its worker was started anew");
    routes_[hello.name] = route;
    workers_[route] = {.name = hello.name, .last_seen_ms = now_ms, .leases = {}};
  }
  send(route, Welcome{options_.heartbeat_ms, buffer_.version(), options_.weights_endpoints});
}

void Hub::on(const std::string& route, Worker& worker, const Heartbeat& heartbeat, int64_t now_ms) {
  worker.version = heartbeat.version;
  worker.credits = heartbeat.credits;
  const std::set<int64_t> named(heartbeat.leases.begin(), heartbeat.leases.end());
  std::vector<int64_t> lost;
  for (const int64_t id : worker.leases)
    if (!named.contains(id) && now_ms - leases_.at(id).issued_ms >= options_.unnamed_after_ms) lost.push_back(id);
  for (const int64_t id : lost) lose_lease(id, rules_.requeue_unnamed, "its worker does not have it");
  update_open(route, worker);
  send(route, WeightsAvailable{buffer_.version()});
}

void Hub::on(const std::string& route, GroupResult& result) {
  std::string why;
  const ResultVerdict verdict = judge(result, why);
  if (verdict != ResultVerdict::kAccepted) {
    ++counters_.num_results_refused[static_cast<size_t>(verdict)];
    if (!why.empty()) lose_lease(result.lease, /*requeue=*/true, why);
    return send(route, Ack{result.lease, verdict});
  }
  const auto found = leases_.find(result.lease);
  const ActiveLease lease = found->second;
  if (rules_.result_ends_lease) end_lease(found);
  send(route, Ack{result.lease, accept(lease, result)});
}

void Hub::on(const std::string& route, HandBack& back) {
  const auto found = leases_.find(back.lease);
  if (found == leases_.end() || found->second.route != route) return;  // given to another by now
  const ActiveLease lease = found->second;
  Entry& entry = entries_.at(lease.ticket);
  const auto span = version_span(back.completions);
  const bool fits = back.completions.size() == static_cast<size_t>(entry.num_completions) && span &&
                    span->oldest >= lease.floor && span->newest <= buffer_.version();
  if (fits) entry.partials = std::move(back.completions);
  if (is_training(entry)) buffer_.give_up(lease.floor);
  end_lease(found);
  if (rules_.requeue_handed_back) put_back(lease.ticket, /*failed=*/false, "");
}

// ---- results ----

ResultVerdict Hub::judge(const GroupResult& result, std::string& why) const {
  const auto found = leases_.find(result.lease);
  if (found == leases_.end()) {
    if (result.lease <= 0 || result.lease >= next_lease_) return ResultVerdict::kInvalid;  // never issued
    const auto ticket = tickets_.find(result.serial);
    const bool waits = ticket != tickets_.end() && entries_.at(ticket->second).state != PromptState::kFinished;
    return waits ? ResultVerdict::kLate : ResultVerdict::kDuplicate;
  }
  why = why_invalid(entries_.at(found->second.ticket), found->second, result);
  return why.empty() ? ResultVerdict::kAccepted : ResultVerdict::kInvalid;
}

std::string Hub::why_invalid(const Entry& entry, const ActiveLease& lease, const GroupResult& result) const {
  if (result.serial != entry.prompt.serial)
    return format("a result for prompt {} instead of {}", result.serial, entry.prompt.serial);
  const int64_t count = result.completions.size();
  if (rules_.check_result_shape && count != entry.num_completions)
    return format("a result of {} completions instead of {}", count, entry.num_completions);
  for (const CompletionFacts& completion : result.completions.facts()) {
    if (!rules_.check_result_shape || completion.failed) continue;
    if (completion.num_tokens == 0) return "a completion without tokens";
    if (completion.num_rewards != options_.num_rewards)
      return format("{} rewards of a completion instead of {}", completion.num_rewards, options_.num_rewards);
    if (completion.lowest_id < 0) return format("token id {}", completion.lowest_id);
    if (options_.vocab_size > 0 && completion.highest_id >= options_.vocab_size)
      return format("token id {}", completion.highest_id);
  }
  const PolicyVersion newest = is_exact(entry) ? lease.floor : buffer_.version();
  const auto& span = result.completions.span();
  if (rules_.check_result_versions && span && (span->oldest < lease.floor || span->newest > newest))
    return format("tokens of versions {} to {}, allowed are {} to {}", span->oldest, span->newest, lease.floor, newest);
  return "";
}

HubGroup Hub::group_of(const Entry& entry) { return {entry.prompt, entry.purpose}; }

ResultVerdict Hub::accept(const ActiveLease& lease, GroupResult& result) {
  const int64_t ticket = lease.ticket;
  Entry& entry = entries_.at(ticket);
  if (!is_training(entry)) {
    ++counters_.num_accepted;
    HubGroup group = group_of(entry);
    group.completions = std::move(result.completions);
    outcomes_.push_back(std::move(group));
    entries_.erase(ticket);
    return ResultVerdict::kAccepted;
  }
  const auto& span = result.completions.span();
  const PolicyVersion oldest = span ? span->oldest : lease.floor;
  LoggedGroup logged{options_.epoch, entry.prompt.serial, hash_prompt(entry.prompt), std::move(result.completions)};
  if (rules_.log_before_ack && !append_to_log_(logged)) ++counters_.num_unlogged;
  if (!buffer_.finish(lease.floor, {ticket, oldest, std::move(logged.completions)})) {
    drop(ticket);
    return ResultVerdict::kTooStale;
  }
  ++counters_.num_accepted;
  entry.state = PromptState::kFinished;
  return ResultVerdict::kAccepted;
}

// ---- leases ----

void Hub::end_lease(Leases::iterator lease) {
  const auto worker = workers_.find(lease->second.route);
  if (worker != workers_.end()) {
    worker->second.leases.erase(lease->first);
    update_open(worker->first, worker->second);
  }
  leases_.erase(lease);
}

// The prompt of a lease that gave no group: to the queue again, or, after too many failures, to the trainer as failed.
void Hub::put_back(int64_t ticket, bool failed, const std::string& why) {
  Entry& entry = entries_.at(ticket);
  entry.state = PromptState::kQueued;
  if (failed && ++entry.num_failures >= options_.max_attempts && rules_.bound_attempts) {
    ++counters_.num_failed;
    HubGroup group = group_of(entry);
    std::vector<Completion> completions(static_cast<size_t>(entry.num_completions));
    for (Completion& completion : completions)
      completion.error = format("given up after {} attempts; the last: {}", entry.num_failures, why);
    group.completions = completions;
    if (is_training(entry)) tickets_.erase(group.prompt.serial);
    outcomes_.push_back(std::move(group));
    entries_.erase(ticket);
    return;
  }
  ++counters_.num_reissued;
  queue_of(entry).insert(ticket);
}

// What takes long enough to become too stale would do so again with weights that are old already.
void Hub::drop(int64_t ticket) {
  ++counters_.num_dropped_stale;
  if (!rules_.requeue_dropped) return;
  entries_.at(ticket).oldest_allowed = buffer_.version();
  put_back(ticket, /*failed=*/false, "");
}

std::set<int64_t>& Hub::queue_of(const Entry& entry) {
  if (!is_training(entry)) return urgent_;
  return entry.oldest_allowed > 0 ? dropped_ : queue_;
}

void Hub::lose_lease(int64_t id, bool requeue, const std::string& why) {
  const auto lease = leases_.find(id);
  const int64_t ticket = lease->second.ticket;
  Entry& entry = entries_.at(ticket);
  if (is_training(entry)) buffer_.give_up(lease->second.floor);
  entry.lost_ms = now_ms_;
  if (const auto worker = workers_.find(lease->second.route); worker != workers_.end())
    entry.lost_by = worker->second.name;
  if (rules_.timeout_ends_lease || !requeue) {
    end_lease(lease);
  } else {
    lease->second.issued_ms = INT64_MAX / 2;
  }
  if (requeue) put_back(ticket, /*failed=*/true, why);
}

void Hub::lose_worker(const std::string& route, const std::string& why) {
  const auto found = workers_.find(route);
  if (found == workers_.end()) return;
  const std::set<int64_t> held = found->second.leases;
  for (const int64_t id : held) lose_lease(id, rules_.requeue_of_lost_worker, why);
  Worker& worker = found->second;
  close(route, worker);
  const auto newest = routes_.find(worker.name);
  if (newest != routes_.end() && newest->second == route) routes_.erase(newest);
  workers_.erase(found);
}

void Hub::tick(int64_t now_ms) {
  now_ms_ = now_ms;
  std::vector<std::string> silent;
  for (const auto& [route, worker] : workers_)
    if (now_ms - worker.last_seen_ms >= options_.worker_timeout_ms) silent.push_back(route);
  std::sort(silent.begin(), silent.end());  // the same order whatever the map's
  for (const std::string& route : silent)
    lose_worker(route, format("its worker was silent for {} ms", options_.worker_timeout_ms));
  std::vector<int64_t> late;
  for (const auto& [id, lease] : leases_)
    if (now_ms - lease.issued_ms >= options_.lease_timeout_ms) late.push_back(id);
  for (const int64_t id : late) {
    send(leases_.at(id).route, CancelLease{id});
    lose_lease(id, rules_.requeue_late, format("no group within {} ms", options_.lease_timeout_ms));
  }
  give_out(now_ms);
}

void Hub::close(const std::string& route, Worker& worker) {
  if (!worker.open) return;
  const auto version = open_.find(worker.open->first);
  version->second.erase({worker.open->second, route});
  if (version->second.empty()) open_.erase(version);
  worker.open.reset();
}

void Hub::update_open(const std::string& route, Worker& worker) {
  close(route, worker);
  if (static_cast<int64_t>(worker.leases.size()) >= worker.credits) return;
  worker.open = {worker.version, worker.leases.size()};
  open_[worker.version].insert({worker.leases.size(), route});
}

void Hub::give_out(int64_t now_ms) {
  const auto give_from = [&](std::set<int64_t>& queue) { return !queue.empty() && give_next(queue, now_ms); };
  while (give_from(urgent_)) {
  }
  while (buffer_.free() > 0 && (give_from(dropped_) || give_from(queue_))) {
  }
}

bool Hub::give_next(std::set<int64_t>& queue, int64_t now_ms) {
  const int64_t ticket = *queue.begin();
  Entry& entry = entries_.at(ticket);
  if (is_training(entry) && replay(ticket, entry)) {
    queue.erase(ticket);
    return true;
  }
  const std::string* route = find_worker(entry, floor_for(entry));
  if (route == nullptr) return false;
  queue.erase(ticket);
  issue(ticket, entry, std::string(*route), now_ms);
  return true;
}

// A group that was accepted before the restart takes the place of a lease.
bool Hub::replay(int64_t ticket, Entry& entry) {
  auto logged = replay_.extract(entry.prompt.serial);
  if (logged.empty()) return false;
  LoggedGroup& found = logged.mapped();
  const auto span = found.completions.span();
  const bool fits = found.prompt_hash == hash_prompt(entry.prompt) &&
                    found.completions.size() == entry.num_completions && span && span->oldest >= floor_for(entry);
  if (!fits) return false;
  buffer_.begin(span->oldest);
  if (!buffer_.finish(span->oldest, {ticket, span->oldest, std::move(found.completions)})) return false;
  entry.state = PromptState::kFinished;
  ++counters_.num_replayed;
  return true;
}

// The oldest version that may draw for the prompt. Evaluation and baselines speak of the newest weights.
PolicyVersion Hub::floor_for(const Entry& entry) const {
  return is_training(entry) ? std::max(buffer_.next_floor(), entry.oldest_allowed) : buffer_.version();
}

// Of the workers with credit left whose weights will do, the one with the fewest leases.
const std::string* Hub::find_worker(const Entry& entry, PolicyVersion floor) const {
  const bool fresh = rules_.fresh_workers_only;
  const auto last = fresh && is_exact(entry) ? open_.upper_bound(floor) : open_.end();
  const std::pair<size_t, std::string>* best = nullptr;
  for (auto version = fresh ? open_.lower_bound(floor) : open_.begin(); version != last; ++version)
    if (best == nullptr || *version->second.begin() < *best) best = &*version->second.begin();
  return best == nullptr ? nullptr : &best->second;
}

void Hub::issue(int64_t ticket, Entry& entry, const std::string& route, int64_t now_ms) {
  Worker& worker = workers_.at(route);
  const PolicyVersion allowed = floor_for(entry);
  const bool exact = is_exact(entry);
  Lease message{.id = next_lease_++,
                .attempt = ++entry.num_attempts,
                .oldest_version = exact ? allowed : std::max(allowed, worker.version),
                .exact = exact,
                .timeout_ms = options_.lease_timeout_ms,
                .purpose = entry.purpose,
                .num_completions = entry.num_completions,
                .sampling = entry.sampling,
                .prompt = entry.prompt,
                .partials = std::exchange(entry.partials, {})};
  if (const auto begun = version_span(message.partials)) {
    const bool too_old = begun->oldest < allowed || (exact && begun->newest != allowed);
    if (too_old && rules_.drop_old_partials) {
      message.partials.clear();
    } else {
      message.oldest_version = std::min(message.oldest_version, begun->oldest);
      ++counters_.num_continued;
    }
  }
  const PolicyVersion floor = message.oldest_version;
  if (is_training(entry)) buffer_.begin(floor);
  leases_[message.id] = {ticket, route, floor, now_ms};
  entry.state = PromptState::kLeased;
  entry.lease = message.id;
  worker.leases.insert(message.id);
  update_open(route, worker);
  if (entry.lost_ms) {
    reissues_.push_back({entry.prompt.serial, std::exchange(entry.lost_by, {}), worker.name, now_ms - *entry.lost_ms});
    entry.lost_ms.reset();
  }
  send(route, std::move(message));
}

int64_t Hub::num_idle_workers() const {
  return std::count_if(workers_.begin(), workers_.end(), [](const auto& entry) { return entry.second.leases.empty(); });
}

std::vector<WorkerFigures> Hub::workers(int64_t now_ms) const {
  std::vector<WorkerFigures> all;
  all.reserve(workers_.size());
  for (const auto& [route, worker] : workers_)
    all.push_back({worker.name, worker.version, static_cast<int64_t>(worker.leases.size()),
                   static_cast<double>(now_ms - worker.last_seen_ms) / 1000});
  std::sort(all.begin(), all.end(), [](const auto& a, const auto& b) { return a.name < b.name; });
  return all;
}

std::vector<LedgerLine> Hub::ledger() const {
  std::vector<LedgerLine> lines;
  lines.reserve(entries_.size());
  for (const auto& [ticket, entry] : entries_)
    lines.push_back({entry.prompt.serial, entry.purpose, entry.state, entry.lease});
  return lines;
}

}  // namespace temper
