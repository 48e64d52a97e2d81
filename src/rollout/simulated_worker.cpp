#include "rollout/simulated_worker.h"

#include <algorithm>

namespace temper {
namespace {

int64_t to_ms(std::chrono::steady_clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

constexpr auto kLongestSleep = std::chrono::milliseconds(100);

}  // namespace

SimulatedWorker::SimulatedWorker(SimulatedWorkerOptions options)
    : options_(std::move(options)),
      machine_(options_.worker),
      channel_(options_.hub, options_.keys, options_.channel),
      thread_([this] { work(); }) {}

SimulatedWorker::~SimulatedWorker() {
  closing_ = true;
  channel_.wake();
  thread_.join();
}

std::vector<float> SimulatedWorker::take_lease_ms() {
  const std::lock_guard lock(mutex_);
  return std::exchange(lease_ms_, {});
}

// produces: groups; consumes: leases; waits for: messages, the end of a pause; is unblocked by: the hub, every 100 ms.
void SimulatedWorker::work() {
  while (!closing_) {
    const Clock::time_point soon = Clock::now() + kLongestSleep;
    const auto message = channel_.receive(answers_.empty() ? soon : std::min(soon, answers_.front().at));
    if (message && message->type >= kFirstApplicationType)
      machine_.receive(decode_rollout_message(message->payload()), to_ms(Clock::now()));
    if (channel_.is_open()) machine_.tick(to_ms(Clock::now()));
    act();
    for (; !answers_.empty() && Clock::now() >= answers_.front().at; answers_.pop_front())
      answer(answers_.front().lease);
    for (const RolloutMessage& said : machine_.take_outbox()) channel_.send(kFirstApplicationType, encode(said));
  }
}

void SimulatedWorker::act() {
  const int64_t now_ms = to_ms(Clock::now());
  for (auto actions = machine_.take_actions(); !actions.empty(); actions = machine_.take_actions())
    for (const WorkerAction& action : actions) {
      if (const auto* wanted = std::get_if<FetchWeights>(&action))
        machine_.fetched(wanted->epoch, wanted->version, now_ms);
      if (const auto* begun = std::get_if<StartLease>(&action)) {
        answers_.push_back({begun->lease, Clock::now() + std::chrono::duration_cast<Clock::duration>(
                                                             std::chrono::duration<double>(options_.pause_s))});
        if (sent_.empty()) continue;
        const std::lock_guard lock(mutex_);
        lease_ms_.push_back(std::chrono::duration<float, std::milli>(Clock::now() - sent_.front()).count());
        sent_.pop_front();
      }
      const auto drop = [this](int64_t lease) {
        std::erase_if(answers_, [lease](const Answer& waiting) { return waiting.lease.id == lease; });
      };
      if (const auto* ended = std::get_if<StopLease>(&action)) {
        drop(ended->lease);
        machine_.handed_back(ended->lease, {}, now_ms);
      }
      if (const auto* unwanted = std::get_if<ForgetLease>(&action)) drop(unwanted->lease);
    }
}

void SimulatedWorker::answer(const Lease& lease) {
  const auto length = static_cast<size_t>(options_.num_tokens);
  Completion one;
  one.token_ids.assign(length, static_cast<int32_t>(lease.prompt.serial));
  one.logprobs.assign(length, -1);
  one.behavior_logprobs.assign(length, -1);
  one.policy_versions.assign(length, machine_.version());
  one.mask.assign(length, 1);
  one.rewards = {0.5};
  sent_.push_back(Clock::now());
  machine_.finished(lease.id, std::vector<Completion>(static_cast<size_t>(lease.num_completions), one),
                    to_ms(Clock::now()));
}

}  // namespace temper
