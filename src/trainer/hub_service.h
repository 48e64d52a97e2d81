// The hub as a service of the trainer's first rank. One thread owns the socket to the rollout workers: it hands the
// hub's state machine (trainer/hub.h) what they say and the time, and sends what it answers. The train loop's thread
// asks for groups, takes them and publishes; each of these calls locks the hub for a moment. What came meanwhile is
// handled together: one lock, one write to the log, and one frame for each worker that gets an answer. What the serving
// thread fails with is thrown by the next call.
//
// Between its construction and its end a service has one epoch, greater than any before it that wrote to the same log.
#pragma once
#include <atomic>
#include <chrono>
#include <condition_variable>
#include <exception>
#include <functional>
#include <map>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/channel.h"
#include "comm/frame_queue.h"
#include "trainer/hub.h"

namespace temper {

struct HubServiceOptions {
  std::string address;             // tcp://HOST:PORT, port * for a free one
  std::optional<ServerKeys> keys;  // none: plain text, which the channel's settings must allow
  ChannelSettings channel;
  HubOptions hub;  // but for its epoch
  std::string log_path;
  int64_t at_least_epoch = 1;
};

class HubService {
 public:
  // version: of the weights at this start. What GroupLog and ChannelServer throw.
  HubService(HubServiceOptions options, PolicyVersion version);
  ~HubService();  // workers look for the next trainer, unless finish() was called
  HubService(const HubService&) = delete;
  HubService& operator=(const HubService&) = delete;

  const std::string& address() const { return server_.address(); }  // with the port
  int64_t epoch() const { return log_.epoch(); }

  // As Hub's.
  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
               RolloutPurpose purpose);
  void filtered(int64_t count);
  void publish(PolicyVersion version);
  void finish();
  // The next group for the trainer; nothing at the deadline.
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point deadline);

  // After a checkpoint: the log keeps only what a restart from it could use, the groups of these serials. IoError: it
  // keeps all.
  void trim_log(const std::function<bool(int64_t serial)>& needed);

  HubCounters counters() const;
  int64_t num_workers() const;
  int64_t num_leases() const;
  PolicyVersion version() const;  // that workers are told
  std::vector<WorkerFigures> workers() const;
  // Of the workers' time since the last call, the share in which they held no lease; 0 without workers.
  double take_idle_share();

 private:
  // What a peer says, out of its frame.
  struct Heard {
    PeerId peer = 0;
    bool gone = false;  // nothing more comes from it
    std::vector<RolloutMessage> messages = {};
  };

  void serve();
  std::vector<Heard> listen();
  void handle(std::vector<Heard> heard, int64_t now_ms);
  void tick(int64_t now_ms);  // REQUIRES: mutex_ held
  void send_all();
  void rethrow() const;  // REQUIRES: mutex_ held

  GroupLog log_;  // guarded by mutex_
  ChannelServer server_;
  mutable std::mutex mutex_;
  std::condition_variable changed_;  // a group may be there
  Hub hub_;                          // guarded by mutex_
  std::exception_ptr failure_;       // guarded by mutex_
  double worker_ms_ = 0;             // guarded by mutex_; time of workers, and of those without a lease
  double idle_ms_ = 0;               // guarded by mutex_
  std::atomic<bool> closing_ = false;

  // Of the serving thread.
  std::map<PeerId, FrameQueue> unsent_;  // what waits for a peer's credit
  int64_t next_tick_ms_ = 0;
  int64_t last_tick_ms_ = 0;
  std::thread thread_;
};

}  // namespace temper
