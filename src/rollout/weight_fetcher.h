// Fetches weights for a rollout worker in a thread of its own, beside generation, and makes them f32 masters that the
// worker's model loads between two engine steps. What does not fit the model is refused whole, with the reason.
#pragma once
#include <condition_variable>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "comm/weight_client.h"
#include "model/parameters.h"

namespace temper {

class WeightFetcher {
 public:
  struct Fetched {
    int64_t epoch = 0;
    PolicyVersion version = -1;
    FlatParameters masters;  // f32, of the whole model
    std::string error;       // not empty: nothing was fetched
  };

  // model: whose parameters are fetched. run_id: of hub.json; the run's workers on this host share one copy of what
  // comes over the wire, in shared memory. Empty: each has its own. links: as WeightClientOptions'. wake: called from
  // the thread when take() has something.
  WeightFetcher(const ModelConfig& model, std::optional<ClientKeys> keys, std::string run_id,
                std::shared_ptr<WeightLinks> links, std::function<void()> wake);
  ~WeightFetcher();
  WeightFetcher(const WeightFetcher&) = delete;
  WeightFetcher& operator=(const WeightFetcher&) = delete;

  // Begins to fetch a version of at least this one; what was asked for before is given up.
  void fetch(std::vector<std::string> endpoints, int64_t epoch, PolicyVersion at_least);
  // What came of the last fetch(), once.
  std::optional<Fetched> take();

 private:
  struct Job {
    std::vector<std::string> endpoints;
    int64_t epoch = 0;
    PolicyVersion at_least = 0;
  };

  void work();
  Fetched run(const Job& job);
  FlatParameters to_masters(const FetchedWeights& weights) const;

  std::vector<ParameterSpec> layout_;
  std::optional<ClientKeys> keys_;
  std::string run_id_;
  std::shared_ptr<WeightLinks> links_;
  std::function<void()> wake_;
  std::mutex mutex_;
  std::condition_variable changed_;
  std::optional<Job> job_;                // guarded by mutex_
  bool busy_ = false;                     // guarded by mutex_
  bool closed_ = false;                   // guarded by mutex_
  std::optional<Fetched> result_;         // guarded by mutex_
  std::unique_ptr<WeightClient> client_;  // guarded by mutex_; replaced by the thread alone
  std::thread thread_;
};

}  // namespace temper
