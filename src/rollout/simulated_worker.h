// Rollout workers without a model, for benches and tests: each speaks the whole protocol over a real connection,
// fetches no weights, and answers each lease with completions of a given length, at once or after a pause. All of them
// share one thread, and ZeroMQ's.
#pragma once
#include <atomic>
#include <cstdint>
#include <deque>
#include <map>
#include <memory>
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

class SimulatedWorkers {
 public:
  explicit SimulatedWorkers(std::vector<SimulatedWorkerOptions> options);
  ~SimulatedWorkers();  // gone at once, as if they were killed
  SimulatedWorkers(const SimulatedWorkers&) = delete;
  SimulatedWorkers& operator=(const SimulatedWorkers&) = delete;

  // Milliseconds from sending a group to the next lease, of all workers, since the last call. Any thread.
  std::vector<float> take_lease_ms();

 private:
  using Clock = std::chrono::steady_clock;
  class Worker;

  void work();
  void step(Worker& worker, bool whole);
  void watch(size_t index);

  ZmqContext context_;
  std::vector<std::unique_ptr<Worker>> workers_;
  int files_;  // an epoll of the workers' connections
  WakeUp wake_;
  std::multimap<Clock::time_point, Worker*> due_;  // when a worker has a group to send
  std::mutex mutex_;
  std::vector<float> lease_ms_;  // guarded by mutex_
  std::atomic<bool> closing_ = false;
  std::thread thread_;
};

}  // namespace temper
