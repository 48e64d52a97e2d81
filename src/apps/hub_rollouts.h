// A stage's rollouts from worker processes, on the trainer's side: the hub on the first rank, the weight servers of all
// ranks, the feed of prompts; wired to the policy, which publishes to them, and to the stage, which takes groups. Made
// by every rank once the stage's state is loaded; the train loop's thread.
#pragma once
#include <deque>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "comm/weight_server.h"
#include "config/config.h"
#include "core/metric_record.h"
#include "data/tokenizer.h"
#include "observe/run_status.h"
#include "trainer/hub_source.h"
#include "trainer/prompt_feed.h"
#include "trainer/train_loop.h"
#include "trainer/weight_publisher.h"

namespace temper {

class HubRollouts {
 public:
  struct Options {
    StageConfig stage;  // as it was loaded, with names of stages in it
    std::string run_directory;
    const Tokenizer* tokenizer = nullptr;
    SamplingParams sampling;  // of training
    PromptFeed::PromptOf prompt_of;
    std::function<void()> check;  // see HubSource
  };
  // Serves the policy's present weights as counters.policy_version. ConfigError, CommError, IoError.
  HubRollouts(Options options, TrainerModel& policy, const TrainCounters& counters, const Ranks& ranks);
  ~HubRollouts();  // workers look for the next trainer, unless finish() was called

  RolloutSource& source() { return *source_; }
  std::vector<RolloutGroup> take(int64_t count) { return feed_->take(count); }
  // timing_s/wait_for_groups, async/…, training/groups_dropped_stale of the step that was taken.
  void add_metrics(MetricRecord& record);
  // For status.json; any thread, on the first rank.
  RunStatus::Hub figures();
  // What a checkpoint keeps: the prompts asked for and not ended.
  void complete(TrainCounters& counters);
  void saved();  // what complete() last gave is on the disk
  // The stage is over: workers are told.
  void finish();

 private:
  void publish(PolicyVersion version);

  Ranks ranks_;
  TrainerModel& policy_;
  std::string hub_file_;
  std::unique_ptr<WeightServer> weights_;
  std::unique_ptr<WeightPublisher> publisher_;
  std::unique_ptr<HubService> service_;  // null on all ranks but the first
  std::unique_ptr<HubSource> source_;
  std::unique_ptr<PromptFeed> feed_;
  int64_t epoch_ = 0;
  PolicyVersion version_;                          // that workers know of
  TrainCounters kept_;                             // by the last checkpoint that was begun
  HubCounters told_;                               // in the records so far
  std::deque<std::pair<double, int64_t>> groups_;  // figures(): seconds, groups taken in by then; of the last minute
  Stopwatch watch_;
};

}  // namespace temper
