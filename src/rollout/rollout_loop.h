// A rollout worker at work for one hub: takes leases over the wire, generates, scores, and brings groups back, while
// new weights come in beside it. The protocol's rules are the state machine's (rollout/worker.h); this is its owner.
//
// Threads: run()'s has engine, model and rewards; one for the wire keeps the hub informed however long an engine step
// takes; the rewards and the fetching of weights have theirs.
#pragma once
#include <atomic>
#include <condition_variable>
#include <deque>
#include <exception>
#include <functional>
#include <map>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/channel.h"
#include "comm/frame_queue.h"
#include "rollout/engine.h"
#include "rollout/environment.h"
#include "rollout/reward_pool.h"
#include "rollout/weight_fetcher.h"
#include "rollout/worker.h"

namespace temper {

struct RolloutLoopOptions {
  std::string hub;                            // address, tcp://HOST:PORT
  std::string run_id;                         // of hub.json, see WeightFetcher; empty: not known
  std::optional<ClientKeys> keys;             // none: plain text, on loopback
  std::shared_ptr<WeightLinks> weight_links;  // null: weights come as messages
  ChannelSettings channel;
  EngineOptions engine;
  WorkerOptions worker;
  double reward_timeout_s = 30;  // for each function on each group
  RolloutEnvironment environment = RolloutEnvironment::kNone;
  int64_t max_turns = 1;
};

class RolloutLoop {
 public:
  // model gets each version's weights; it and tokenizer outlive the loop.
  RolloutLoop(Transformer& model, const Tokenizer& tokenizer, std::vector<std::unique_ptr<Reward>> rewards,
              RolloutLoopOptions options);
  ~RolloutLoop();
  RolloutLoop(const RolloutLoop&) = delete;
  RolloutLoop& operator=(const RolloutLoop&) = delete;

  enum class End { kHubDone, kStopped, kHubMoved };
  // kHubDone: the hub said goodbye. kStopped: as asked, with everything handed back. kHubMoved: as hub_moved() said,
  // which is asked now and then while the hub is out of reach. ConfigError: the hub refuses this worker. Called once.
  End run(const std::function<bool()>& stop_requested, const std::function<bool()>& hub_moved);

 private:
  // run()'s thread
  void act();
  void start(Lease lease);
  bool can_go_on(const Lease& lease) const;
  void score(int64_t lease, std::vector<Completion> completions);
  void stop(int64_t lease);
  void forget(int64_t lease);
  void use_weights(PolicyVersion version);
  void take_scored();
  void take_fetched();
  void generate();
  void rest();
  void wake();  // any thread
  std::optional<End> look_around(const std::function<bool()>& stop_requested, const std::function<bool()>& hub_moved);

  // the wire's thread
  void serve_wire();
  void hear(const ChannelMessage& message, int64_t now_ms);  // REQUIRES: mutex_ held
  void speak();

  RolloutLoopOptions options_;
  std::mutex wake_mutex_;
  std::condition_variable woken_up_;
  bool woken_ = false;  // guarded by wake_mutex_; there is something to do

  Transformer& model_;
  Engine engine_;
  RewardPool rewards_;
  int64_t weights_epoch_ = 0;                      // of those in use
  std::optional<WeightFetcher::Fetched> fetched_;  // not in use yet
  std::map<int64_t, Prompt> prompts_;              // by lease, of those in the engine
  std::deque<int64_t> scoring_;                    // leases, as their groups went to rewards_; kNobody: forgotten
  std::chrono::steady_clock::time_point last_look_ = {};  // for another hub
  std::string told_;                                      // the last reason that was logged for being out of reach

  std::mutex mutex_;
  RolloutWorker machine_;       // guarded by mutex_
  std::string out_of_reach_;    // guarded by mutex_; why, empty: the wire is open
  std::exception_ptr failure_;  // guarded by mutex_; of the wire's thread

  ChannelClient channel_;  // of the wire's thread
  FrameQueue unsent_;      // of the wire's thread
  std::atomic<bool> closing_ = false;
  WeightFetcher fetcher_;
  std::thread wire_;
};

}  // namespace temper
