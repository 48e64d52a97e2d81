#include "rollout/simulated_worker.h"

#include <sys/epoll.h>
#include <unistd.h>

#include <algorithm>
#include <array>

#include "comm/frame_queue.h"
#include "core/error.h"
#include "core/rng.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

// Heartbeats, connections that begin and end: each worker is looked at every 100 ms, a part of them at a time, for what
// looks at a thousand at once keeps their leases waiting.
constexpr size_t kParts = 20;
constexpr auto kNextPart = std::chrono::milliseconds(100) / kParts;
constexpr uint64_t kWake = UINT64_MAX;

int64_t to_ms(Clock::time_point time) {
  return std::chrono::duration_cast<std::chrono::milliseconds>(time.time_since_epoch()).count();
}

}  // namespace

class SimulatedWorkers::Worker {
 public:
  Worker(SimulatedWorkerOptions options, const ZmqContext& context)
      : options_(std::move(options)),
        machine_(options_.worker),
        channel_(options_.hub, options_.keys, options_.channel, &context),
        rng_(options_.worker.seed) {}

  int file() const { return channel_.file(); }
  bool expect(Clock::time_point due) { return std::exchange(expected_, due) != due; }  // false: it is already

  // All that can be done now; with `whole`, for the connection too. When there is a group to send; nothing: no lease is
  // out.
  std::optional<Clock::time_point> step(bool whole, std::vector<float>& lease_ms) {
    do {
      while (const auto message = whole ? channel_.receive(Clock::time_point()) : channel_.next())
        if (message->type >= kFirstApplicationType)
          for (const RolloutMessage& said : decode_rollout_messages(message->payload()))
            machine_.receive(said, to_ms(Clock::now()));
      if (channel_.is_open()) machine_.tick(to_ms(Clock::now()));
      act(lease_ms);
      for (; !answers_.empty() && Clock::now() >= answers_.front().at; answers_.pop_front()) {
        sent_.push_back(Clock::now());
        fill(answers_.front().serial);
        machine_.finished(answers_.front().id, completions_, to_ms(Clock::now()));
      }
    } while (speak());  // sending may have taken note of what came, so that the file is not readable
    return answers_.empty() ? std::nullopt : std::optional(answers_.front().at);
  }

 private:
  struct Answer {
    int64_t id;  // of the lease
    int64_t serial;
    Clock::time_point at;
  };

  void act(std::vector<float>& lease_ms) {
    const int64_t now_ms = to_ms(Clock::now());
    for (auto actions = machine_.take_actions(); !actions.empty(); actions = machine_.take_actions())
      for (WorkerAction& action : actions) {
        if (const auto* wanted = std::get_if<FetchWeights>(&action))
          machine_.fetched(wanted->epoch, wanted->version, now_ms);
        if (const auto* begun = std::get_if<StartLease>(&action)) start(begun->lease, lease_ms);
        const auto drop = [this](int64_t lease) {
          std::erase_if(answers_, [lease](const Answer& waiting) { return waiting.id == lease; });
        };
        if (const auto* ended = std::get_if<StopLease>(&action)) {
          drop(ended->lease);
          machine_.handed_back(ended->lease, {}, now_ms);
        }
        if (const auto* unwanted = std::get_if<ForgetLease>(&action)) drop(unwanted->lease);
      }
  }

  void start(const Lease& lease, std::vector<float>& lease_ms) {
    const auto now = Clock::now();
    // Between half and one and a half of it: workers that were let in together do not stay so.
    const std::chrono::duration<double> pause(options_.pause_s * static_cast<double>(rng_.in_range(500, 1500)) / 1000);
    completions_.resize(static_cast<size_t>(lease.num_completions));
    temperature_ = lease.sampling.temperature;
    const Answer answer{lease.id, lease.prompt.serial, now + std::chrono::duration_cast<Clock::duration>(pause)};
    answers_.insert(std::upper_bound(answers_.begin(), answers_.end(), answer,
                                     [](const Answer& a, const Answer& b) { return a.at < b.at; }),
                    answer);
    if (sent_.empty()) return;
    lease_ms.push_back(std::chrono::duration<float, std::milli>(now - sent_.front()).count());
    sent_.pop_front();
  }

  // Every group is of the same completions but for their tokens, made in the same memory: what is measured is the hub.
  void fill(int64_t serial) {
    const auto length = static_cast<size_t>(options_.num_tokens);
    for (Completion& one : completions_) {
      one.token_ids.assign(length, static_cast<int32_t>(serial));
      one.logprobs.assign(length, -1);
      one.behavior_logprobs.assign(length, temperature_ == 1 ? -1 : -2);
      one.policy_versions.assign(length, machine_.version());
      one.mask.assign(length, 1);
      one.rewards = {0.5};
    }
  }

  bool speak() {
    const std::vector<RolloutMessage> outbox = machine_.take_outbox();
    FrameQueue frames;
    for (const RolloutMessage& said : outbox) frames.add(encode(said));
    frames.send_all([this](const std::string& frame) { return channel_.send(kFirstApplicationType, frame); });
    return !outbox.empty();
  }

  SimulatedWorkerOptions options_;
  RolloutWorker machine_;
  ChannelClient channel_;
  SplitMix64 rng_;
  Clock::time_point expected_;
  std::vector<Completion> completions_;
  double temperature_ = 1;
  std::deque<Answer> answers_;          // to be given, in the order of time
  std::deque<Clock::time_point> sent_;  // groups whose place no lease has taken yet
};

SimulatedWorkers::SimulatedWorkers(std::vector<SimulatedWorkerOptions> options)
    : context_(1, static_cast<int>(4 * options.size() + 64)), files_(::epoll_create1(EPOLL_CLOEXEC)) {
  if (files_ < 0) throw IoError("no epoll can be made. Raise the limit of open files.");
  for (SimulatedWorkerOptions& one : options) workers_.push_back(std::make_unique<Worker>(std::move(one), context_));
  epoll_event event{.events = EPOLLIN, .data = {.u64 = kWake}};
  ::epoll_ctl(files_, EPOLL_CTL_ADD, wake_.file(), &event);
  thread_ = std::thread([this] { work(); });
}

SimulatedWorkers::~SimulatedWorkers() {
  closing_ = true;
  wake_.raise();
  thread_.join();
  ::close(files_);
}

std::vector<float> SimulatedWorkers::take_lease_ms() {
  const std::lock_guard lock(mutex_);
  return std::exchange(lease_ms_, {});
}

// produces: groups; consumes: leases; waits for: messages, the end of a pause; is unblocked by: the hub, every 100 ms.
void SimulatedWorkers::work() {
  std::array<epoll_event, 256> ready{};
  size_t part = 0;
  for (auto look_at = Clock::now(); !closing_;) {
    const auto until = due_.empty() ? look_at : std::min(look_at, due_.begin()->first);
    const auto wait = std::chrono::ceil<std::chrono::milliseconds>(until - Clock::now()).count();
    const int count = ::epoll_wait(files_, ready.data(), static_cast<int>(ready.size()),
                                   static_cast<int>(std::max<int64_t>(0, wait)));
    for (int i = 0; i < count; ++i)
      if (const uint64_t index = ready[static_cast<size_t>(i)].data.u64; index != kWake) step(*workers_[index], false);
    for (const auto now = Clock::now(); !due_.empty() && due_.begin()->first <= now;) {
      Worker& worker = *due_.begin()->second;
      due_.erase(due_.begin());
      step(worker, false);
    }
    if (Clock::now() < look_at) continue;
    for (size_t index = part; index < workers_.size(); index += kParts) {
      step(*workers_[index], true);
      watch(index);
    }
    part = (part + 1) % kParts;
    look_at = Clock::now() + kNextPart;
  }
}

void SimulatedWorkers::step(Worker& worker, bool whole) {
  std::vector<float> lease_ms;
  const auto due = worker.step(whole, lease_ms);
  if (due && worker.expect(*due)) due_.emplace(*due, &worker);
  if (lease_ms.empty()) return;
  const std::lock_guard lock(mutex_);
  lease_ms_.insert(lease_ms_.end(), lease_ms.begin(), lease_ms.end());
}

// A connection that is new has a new file; one that is watched already stays so.
void SimulatedWorkers::watch(size_t index) {
  const int file = workers_[index]->file();
  epoll_event event{.events = EPOLLIN, .data = {.u64 = index}};
  if (file >= 0) ::epoll_ctl(files_, EPOLL_CTL_ADD, file, &event);
}

}  // namespace temper
