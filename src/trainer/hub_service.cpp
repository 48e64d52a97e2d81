#include "trainer/hub_service.h"

#include "core/error.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr int64_t kTickMs = 100;
constexpr int64_t kSyncLogMs = 1000;

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
      version_(version),
      hub_(with_epoch(std::move(options.hub), log_.epoch()), version, log_.take_replay(),
           [this](const LoggedGroup& group) { return log_.append(group); }),
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
  version_ = version;
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
    if (auto group = hub_.take()) {
      server_.wake();  // its place may be given out
      return group;
    }
    if (late) return std::nullopt;
    late = changed_.wait_until(lock, deadline) == std::cv_status::timeout;
  }
}

void HubService::trim_log(const std::function<bool(int64_t serial)>& needed) {
  const std::lock_guard lock(mutex_);
  log_.keep_only(needed, version_);
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
      const auto next_tick = Clock::time_point(std::chrono::milliseconds(next_tick_ms_));
      const std::optional<ChannelMessage> message = server_.receive(next_tick);
      const int64_t now_ms = to_ms(Clock::now());
      if (message) handle(*message, now_ms);
      if (!message || now_ms >= next_tick_ms_) tick(now_ms);
      send_all();
    }
    send_all();  // goodbyes
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  changed_.notify_all();
}

void HubService::handle(const ChannelMessage& message, int64_t now_ms) {
  if (message.type == kOpened) return;
  const std::lock_guard lock(mutex_);
  const std::string route = route_of(message.peer);
  // A worker that comes back does so by another route.
  const auto lose = [&] {
    unsent_.erase(message.peer);
    hub_.receive(route, {log_.epoch(), Goodbye{}}, now_ms);
  };
  if (message.type == kClosed) return lose();
  try {
    hub_.receive(route, decode_rollout_message(message.payload()), now_ms);
  } catch (const FormatError& error) {
    server_.refuse(message.peer, error.what());
    lose();
  }
  changed_.notify_all();
}

void HubService::tick(int64_t now_ms) {
  const std::lock_guard lock(mutex_);
  hub_.tick(now_ms);
  log_.sync_if_due(now_ms);
  if (last_tick_ms_ > 0) {
    const auto passed = static_cast<double>(now_ms - last_tick_ms_);
    worker_ms_ += passed * static_cast<double>(hub_.num_workers());
    idle_ms_ += passed * static_cast<double>(hub_.num_idle_workers());
  }
  last_tick_ms_ = now_ms;
  next_tick_ms_ = now_ms + kTickMs;
  changed_.notify_all();  // a prompt may have failed
}

void HubService::send_all() {
  {
    const std::lock_guard lock(mutex_);
    for (Hub::Outgoing& out : hub_.take_outbox()) unsent_[peer_of(out.route)].push_back(encode(out.message));
  }
  for (auto peer = unsent_.begin(); peer != unsent_.end();) {
    auto& [id, messages] = *peer;
    SendResult sent = SendResult::kSent;
    while (!messages.empty() && sent == SendResult::kSent) {
      sent = server_.send(id, kFirstApplicationType, messages.front());
      if (sent == SendResult::kSent) messages.pop_front();
    }
    peer = messages.empty() || sent == SendResult::kGone ? unsent_.erase(peer) : std::next(peer);
  }
}

}  // namespace temper
