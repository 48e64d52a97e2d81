// A rollout worker without a model, for benches and tests: speaks the whole protocol over a real connection, fetches no
// weights, and answers each lease with completions of a given length, at once or after a pause. One thread each.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/channel.h"
#include "rollout/worker.h"

namespace temper {

struct SimulatedWorkerOptions {
  WorkerOptions worker;
  std::string hub;  // tcp://HOST:PORT
  std::optional<ClientKeys> keys;
  ChannelSettings channel;
  int64_t num_tokens = 1;  // of a completion; each is the prompt's serial
  double pause_s = 0;      // between a lease and its group
};

class SimulatedWorker {
 public:
  explicit SimulatedWorker(SimulatedWorkerOptions options);
  ~SimulatedWorker();  // gone at once, as if it were killed
  SimulatedWorker(const SimulatedWorker&) = delete;
  SimulatedWorker& operator=(const SimulatedWorker&) = delete;

  // Milliseconds from sending a group to the next lease, since the last call. Any thread.
  std::vector<float> take_lease_ms();

 private:
  using Clock = std::chrono::steady_clock;
  struct Answer {
    Lease lease;
    Clock::time_point at;
  };

  void work();
  void act();
  void answer(const Lease& lease);

  SimulatedWorkerOptions options_;
  RolloutWorker machine_;
  ChannelClient channel_;
  std::deque<Answer> answers_;          // to be given, in the order of time
  std::deque<Clock::time_point> sent_;  // groups whose place no lease has taken yet
  std::mutex mutex_;
  std::vector<float> lease_ms_;  // guarded by mutex_
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

}  // namespace temper
