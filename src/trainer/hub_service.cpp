#include "trainer/hub_service.h"

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kTickMs = 100;
constexpr int64_t kSyncLogMs = 1000;
constexpr size_t kMostFramesAtOnce = 256;

int64_t to_ms(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

// The transport's name of a worker: each connection is a route of its own.
std::string route_of(PeerId peer) { return std::to_string(peer); }
PeerId peer_of(const std::string& route) { return std::stoll(route); }

HubOptions with_epoch(HubOptions options, int64_t epoch) {
  options.epoch = epoch;
  return options;
}

}  // namespace

HubService::HubService(HubServiceOptions options, PolicyVersion version)
    : log_(options.log_path, version, options.at_least_epoch, kSyncLogMs),
      server_(options.address, options.keys, options.channel),
      hub_(with_epoch(std::move(options.hub), log_.epoch()), version, log_.take_replay(),
           [this](const LoggedGroup& group) {
             log_.append(group);
             return true;  // written by handle()
           }),
      thread_([this] { serve(); }) {}

HubService::~HubService() {
  closing_ = true;
  server_.wake();
  thread_.join();
}

// ---- the trainer's thread ----

void HubService::rethrow() const {
  if (failure_) std::rethrow_exception(failure_);
}

void HubService::request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                         RolloutPurpose purpose) {
  const std::lock_guard lock(mutex_);
  rethrow();
  hub_.request(std::move(prompts), num_completions, sampling, purpose);
  server_.wake();
}

void HubService::filtered(int64_t count) {
  const std::lock_guard lock(mutex_);
  hub_.filtered(count);
  server_.wake();
}

void HubService::publish(PolicyVersion version) {
  const std::lock_guard lock(mutex_);
  rethrow();
  hub_.publish(version);
  server_.wake();
}

void HubService::finish() {
  const std::lock_guard lock(mutex_);
  hub_.finish();
  server_.wake();
}

std::optional<RolloutGroup> HubService::next_group(Clock::time_point deadline) {
  std::unique_lock lock(mutex_);
  for (bool late = false;;) {
    rethrow();
    const int64_t num_reissued = hub_.counters().num_reissued;
    auto group = hub_.take();
    if (hub_.counters().num_reissued > num_reissued) server_.wake();  // prompts of groups that were too old
    if (group) {
      lock.unlock();
      return std::move(*group).unpack();
    }
    if (late) return std::nullopt;
    late = changed_.wait_until(lock, deadline) == std::cv_status::timeout;
  }
}

void HubService::trim_log(const std::function<bool(int64_t serial)>& needed) {
  std::unique_lock lock(mutex_);
  LogTrim trim(log_, needed);
  lock.unlock();  // the hub does not wait for the disk
  trim.write();
  lock.lock();
  log_.adopt(std::move(trim));
}

HubCounters HubService::counters() const {
  const std::lock_guard lock(mutex_);
  return hub_.counters();
}

int64_t HubService::num_workers() const {
  const std::lock_guard lock(mutex_);
  return hub_.num_workers();
}

int64_t HubService::num_leases() const {
  const std::lock_guard lock(mutex_);
  return hub_.num_leases();
}

PolicyVersion HubService::version() const {
  const std::lock_guard lock(mutex_);
  return hub_.buffer().version();
}

std::vector<WorkerFigures> HubService::workers() const {
  const std::lock_guard lock(mutex_);
  return hub_.workers(to_ms(Clock::now()));
}

double HubService::take_idle_share() {
  const std::lock_guard lock(mutex_);
  const double share = worker_ms_ > 0 ? idle_ms_ / worker_ms_ : 0;
  worker_ms_ = idle_ms_ = 0;
  return share;
}

// ---- the serving thread ----

// produces: groups for the trainer, messages for workers; consumes: messages of workers, the trainer's calls;
// waits for: a message, the next tick; is unblocked by: wake(), from every call of the trainer and the destructor.
void HubService::serve() {
  try {
    while (!closing_) {
      handle(listen(), to_ms(Clock::now()));
      send_all();
    }
    send_all();  // goodbyes
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  changed_.notify_all();
}

// Waits for the first frame, then takes what else is there.
std::vector<HubService::Heard> HubService::listen() {
  std::vector<Heard> heard;
  for (Clock::time_point until{std::chrono::milliseconds(next_tick_ms_)}; heard.size() < kMostFramesAtOnce;
       until = Clock::time_point()) {
    const std::optional<ChannelMessage> message = server_.receive(until);
    if (!message) break;
    if (message->type == kOpened) continue;
    Heard said{.peer = message->peer, .gone = message->type == kClosed};
    try {
      if (!said.gone) said.messages = decode_rollout_messages(message->payload());
    } catch (const FormatError& error) {
      server_.refuse(message->peer, error.what());
      said.gone = true;
    }
    heard.push_back(std::move(said));
  }
  return heard;
}

void HubService::handle(std::vector<Heard> heard, int64_t now_ms) {
  {
    const std::lock_guard lock(mutex_);
    for (Heard& said : heard) {
      const std::string route = route_of(said.peer);
      for (RolloutMessage& message : said.messages) hub_.receive(route, std::move(message), now_ms);
      if (!said.gone) continue;
      // A worker that comes back does so by another route.
      unsent_.erase(said.peer);
      hub_.receive(route, {log_.epoch(), Goodbye{}}, now_ms);
    }
    if (heard.empty() || now_ms >= next_tick_ms_) tick(now_ms);  // the trainer may have asked for something
    for (const Reissue& again : hub_.take_reissues())
      log_to_file(LogLevel::kInfo, format("prompt {}: lost by worker {}, given to {} after {} ms", again.serial,
                                          again.from, again.to, again.waited_ms));
    hub_.note_unlogged(log_.flush());  // before anything is acknowledged
    for (const Hub::Outgoing& out : hub_.take_outbox()) unsent_[peer_of(out.route)].add(encode(out.message));
  }
  changed_.notify_all();
}

void HubService::tick(int64_t now_ms) {
  hub_.tick(now_ms);
  log_.sync_if_due(now_ms);
  if (last_tick_ms_ > 0) {
    const auto passed = static_cast<double>(now_ms - last_tick_ms_);
    worker_ms_ += passed * static_cast<double>(hub_.num_workers());
    idle_ms_ += passed * static_cast<double>(hub_.num_idle_workers());
  }
  last_tick_ms_ = now_ms;
  next_tick_ms_ = now_ms + kTickMs;
}

void HubService::send_all() {
  for (auto peer = unsent_.begin(); peer != unsent_.end();) {
    const SendResult sent = peer->second.send_all(
        [&](const std::string& frame) { return server_.send(peer->first, kFirstApplicationType, frame); });
    peer = sent == SendResult::kNoCredit ? std::next(peer) : unsent_.erase(peer);
  }
}

}  // namespace temper
