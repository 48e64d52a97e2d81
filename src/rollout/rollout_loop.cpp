#include "rollout/rollout_loop.h"

#include <algorithm>

#include "core/error.h"
#include "core/log.h"
#include "core/log_context.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kTick = std::chrono::milliseconds(100);      // of the state machine
constexpr auto kIdleWait = std::chrono::milliseconds(100);  // for the wire, the fetcher or the rewards, which end it
constexpr auto kLookEvery = std::chrono::seconds(1);
constexpr int64_t kNobody = 0;  // leases count from 1

int64_t now_ms() {
  return std::chrono::duration_cast<std::chrono::milliseconds>(Clock::now().time_since_epoch()).count();
}

}  // namespace

RolloutLoop::RolloutLoop(Transformer& model, const Tokenizer& tokenizer, std::vector<std::unique_ptr<Reward>> rewards,
                         RolloutLoopOptions options)
    : options_(std::move(options)),
      model_(model),
      engine_(model, tokenizer, options_.engine),
      rewards_(std::move(rewards), options_.reward_timeout_s, [this] { wake(); }),
      machine_(options_.worker),
      out_of_reach_("no answer yet"),
      channel_(options_.hub, options_.keys, options_.channel),
      fetcher_(model.config(), options_.keys, options_.run_id, options_.weight_links, [this] { wake(); }),
      wire_([this] { serve_wire(); }) {}

RolloutLoop::~RolloutLoop() {
  closing_ = true;
  channel_.wake();
  wire_.join();
}

// produces: scored groups, partial completions; consumes: leases, versions of the weights;
// waits for: either, while nothing is generated; is unblocked by: wake(), every 100 ms.
RolloutLoop::End RolloutLoop::run(const std::function<bool()>& stop_requested, const std::function<bool()>& hub_moved) {
  while (true) {
    take_fetched();
    take_scored();
    act();
    if (const auto end = look_around(stop_requested, hub_moved)) return *end;
    if (engine_.idle())
      rest();
    else
      generate();
  }
}

// What the state machine asks for; doing one thing may make it ask for another.
void RolloutLoop::act() {
  const auto take_actions = [this] {
    const std::lock_guard lock(mutex_);
    return machine_.take_actions();
  };
  for (auto actions = take_actions(); !actions.empty(); actions = take_actions())
    for (const WorkerAction& action : actions) {
      if (const auto* begun = std::get_if<StartLease>(&action)) start(begun->lease);
      if (const auto* ended = std::get_if<StopLease>(&action)) stop(ended->lease);
      if (const auto* unwanted = std::get_if<ForgetLease>(&action)) {
        engine_.cancel(unwanted->lease);
        forget(unwanted->lease);
      }
      if (const auto* wanted = std::get_if<FetchWeights>(&action)) {
        const std::lock_guard lock(mutex_);
        fetcher_.fetch(machine_.welcome().weights_endpoints, wanted->epoch, wanted->version);
      }
      if (const auto* used = std::get_if<UseWeights>(&action)) use_weights(used->version);
    }
}

void RolloutLoop::start(Lease lease) {
  prompts_[lease.id] = lease.prompt;
  if (!can_go_on(lease)) lease.partials.clear();
  const auto is_whole = [](const Completion& c) { return c.finish_reason != FinishReason::kAborted; };
  if (!lease.partials.empty() && std::all_of(lease.partials.begin(), lease.partials.end(), is_whole))
    return score(lease.id, std::move(lease.partials));
  engine_.submit({.id = lease.id,
                  .prompt_token_ids = lease.prompt.token_ids,
                  .num_completions = lease.num_completions,
                  .sampling = lease.sampling,
                  .serial = lease.prompt.serial,
                  .label = format("prompt {} (line {})", lease.prompt.serial, lease.prompt.line + 1),
                  .environment =
                      [this, &lease] {
                        auto environment = make_environment(options_.environment, options_.max_turns);
                        if (environment) environment->reset(lease.prompt);
                        return environment;
                      },
                  .begun = std::move(lease.partials)});
}

// Whether another worker's completions can be gone on with here; else they are drawn again, which gives the same where
// the weights are the same: a draw depends on the prompt's serial and the position alone.
bool RolloutLoop::can_go_on(const Lease& lease) const {
  if (options_.environment != RolloutEnvironment::kNone) return false;  // its state stayed behind
  if (static_cast<int32_t>(lease.partials.size()) != lease.num_completions) return false;
  const ModelConfig& model = model_.config();
  const int64_t room =
      std::min<int64_t>(lease.sampling.max_new_tokens,
                        model.max_position_embeddings - static_cast<int64_t>(lease.prompt.token_ids.size()));
  return std::all_of(lease.partials.begin(), lease.partials.end(), [&](const Completion& begun) {
    const auto length = static_cast<int64_t>(begun.token_ids.size());
    const bool whole = begun.finish_reason != FinishReason::kAborted;
    const auto is_token = [&](int32_t id) { return id >= 0 && id < model.vocab_size; };
    return (whole ? length > 0 && length <= room : length < room) &&
           std::all_of(begun.token_ids.begin(), begun.token_ids.end(), is_token);
  });
}

void RolloutLoop::stop(int64_t lease) {
  std::vector<Completion> partials = engine_.cancel(lease);
  forget(lease);
  const std::lock_guard lock(mutex_);
  machine_.handed_back(lease, std::move(partials), now_ms());
  channel_.wake();  // there is something to say
}

// Another epoch's leases count from 1 again: nothing of an earlier one may be taken for theirs.
void RolloutLoop::forget(int64_t lease) {
  prompts_.erase(lease);
  std::replace(scoring_.begin(), scoring_.end(), lease, kNobody);
}

void RolloutLoop::use_weights(PolicyVersion version) {
  TEMPER_CHECK(fetched_.has_value() && fetched_->version == version, "version {} was not fetched", version);
  model_.load(fetched_->masters, version);
  // The same number may stand for other weights: the trainer went back to a checkpoint.
  if (std::exchange(weights_epoch_, fetched_->epoch) != fetched_->epoch) engine_.recompute_cache();
  set_log_context(format("worker={} version={}", options_.worker.name, version));
  log_debug("version {} of the weights is in use", version);
  fetched_.reset();
}

void RolloutLoop::generate() {
  for (GenerationResult& result : engine_.step()) score(result.id, std::move(result.completions));
  act();  // weights that waited for the last of them come in before newer ones are taken in their place
}

void RolloutLoop::score(int64_t lease, std::vector<Completion> completions) {
  RolloutGroup group;
  group.prompt = std::move(prompts_.extract(lease).mapped());
  group.completions = std::move(completions);
  scoring_.push_back(lease);
  rewards_.submit(std::move(group));
  const std::lock_guard lock(mutex_);
  machine_.generated(lease, now_ms());
  channel_.wake();
}

void RolloutLoop::rest() {
  std::unique_lock lock(wake_mutex_);
  woken_up_.wait_for(lock, kIdleWait, [this] { return woken_; });
  woken_ = false;
}

void RolloutLoop::wake() {
  {
    const std::lock_guard lock(wake_mutex_);
    woken_ = true;
  }
  woken_up_.notify_one();
}

void RolloutLoop::take_scored() {
  while (!scoring_.empty()) {
    auto group = rewards_.next(Clock::time_point());
    if (!group) return;
    const int64_t lease = scoring_.front();
    scoring_.pop_front();
    const std::lock_guard lock(mutex_);
    if (lease != kNobody) machine_.finished(lease, std::move(group->completions), now_ms());
    channel_.wake();
  }
}

void RolloutLoop::take_fetched() {
  auto fetched = fetcher_.take();
  if (!fetched) return;
  const std::lock_guard lock(mutex_);
  if (!fetched->error.empty()) {
    log_warning("weights were not fetched, the next try comes soon: {}", fetched->error);
    return machine_.fetch_failed(now_ms());
  }
  fetched_ = std::move(fetched);
  machine_.fetched(fetched_->epoch, fetched_->version, now_ms());
  channel_.wake();
}

// Whether there is a reason to end. Says why the hub is out of reach, once a reason.
std::optional<RolloutLoop::End> RolloutLoop::look_around(const std::function<bool()>& stop_requested,
                                                         const std::function<bool()>& hub_moved) {
  const bool stopping = stop_requested();
  WorkerState state = WorkerState::kConnecting;
  std::string out_of_reach, refusal;
  {
    const std::lock_guard lock(mutex_);
    if (failure_) std::rethrow_exception(failure_);
    state = machine_.state();
    if (state != WorkerState::kDone && stopping) machine_.leave();
    if (stopping) channel_.wake();
    out_of_reach = out_of_reach_;
    refusal = machine_.refusal();
  }
  if (state == WorkerState::kDone) return stopping ? End::kStopped : End::kHubDone;
  if (state == WorkerState::kTurnedAway) {
    if (hub_moved()) return End::kHubMoved;
    throw ConfigError("{}: {}", options_.hub, refusal);
  }
  if (out_of_reach.empty() && !told_.empty()) log_info("the hub at {} answers", options_.hub);
  if (out_of_reach.empty()) told_.clear();
  if (out_of_reach.empty() || Clock::now() - last_look_ < kLookEvery) return std::nullopt;
  if (last_look_ != Clock::time_point() && out_of_reach != told_) {
    log_warning("no contact with the hub: {}", out_of_reach);
    told_ = out_of_reach;
  }
  last_look_ = Clock::now();
  return hub_moved() ? std::optional(End::kHubMoved) : std::nullopt;
}

// ---- the wire's thread ----

// produces: the machine's knowledge of the hub; consumes: what the machine has to say; waits for: messages;
// is unblocked by: wake(), every 100 ms.
void RolloutLoop::serve_wire() {
  try {
    for (bool last = false; !last;) {
      last = closing_;
      const auto message = channel_.receive(last ? Clock::time_point() : Clock::now() + kTick);
      {
        const std::lock_guard lock(mutex_);
        if (message) hear(*message, now_ms());
        if (channel_.is_open()) machine_.tick(now_ms());
        for (const RolloutMessage& said : machine_.take_outbox()) unsent_.add(encode(said));
        out_of_reach_ = channel_.refusal();
      }
      wake();
      speak();
    }
  } catch (...) {
    const std::lock_guard lock(mutex_);
    failure_ = std::current_exception();
  }
  wake();
}

void RolloutLoop::hear(const ChannelMessage& message, int64_t now) {
  if (message.type == kClosed) unsent_.clear();  // results are sent again, the rest is void
  if (message.type < kFirstApplicationType) return;
  try {
    for (const RolloutMessage& said : decode_rollout_messages(message.payload())) machine_.receive(said, now);
  } catch (const FormatError& error) {
    log_warning("a message of the hub was refused: {}", error.what());
  }
}

void RolloutLoop::speak() {
  unsent_.send_all([this](const std::string& frame) { return channel_.send(kFirstApplicationType, frame); });
}

}  // namespace temper
