// Which training prompts the hub is asked for, and when: always as many beyond the batch under way as workers may run
// ahead, so that none of them waits for the trainer to ask. Knows which of the prompts asked for have not ended: a
// checkpoint keeps them beside the cursor, and a resumed run asks for them first. The same on every rank; one thread.
#pragma once
#include <cstdint>
#include <functional>
#include <set>
#include <vector>

#include "trainer/hub_source.h"

namespace temper {

struct FeedOptions {
  int64_t groups_per_step = 1;
  int64_t max_staleness = 0;
  int num_completions = 1;
  SamplingParams sampling;
  bool with_baseline = false;  // also a greedy completion of each prompt; on-policy alone
};

class PromptFeed {
 public:
  using PromptOf = std::function<Prompt(int64_t serial)>;

  // cursor: the first serial that was never asked for; unended: those below it without a group in a batch.
  PromptFeed(HubSource& source, PromptOf prompt_of, const FeedOptions& options, int64_t cursor,
             const std::vector<int64_t>& unended);

  // The next `count` groups of training, with_baseline each prompt's baseline among them. Asked again within a step,
  // the trainer wants others in the place of those that taught nothing. REQUIRES: at most groups_per_step.
  // StoppedWaiting: the step's prompts, those that were taken too, have not ended; on-policy the cursor is before them.
  std::vector<RolloutGroup> take(int64_t count);
  // The groups that were taken are trained on.
  void step_done();

  int64_t cursor() const { return cursor_; }
  std::vector<int64_t> unended() const { return {asked_.begin(), asked_.end()}; }

 private:
  void ask(std::vector<int64_t> serials);
  RolloutGroup next_group();

  HubSource& source_;
  PromptOf prompt_of_;
  FeedOptions options_;
  int64_t cursor_;
  std::set<int64_t> asked_;     // serials that have not ended
  bool mid_step_ = false;       // a batch was taken and not trained on
  std::vector<int64_t> taken_;  // serials of the step under way
  int64_t num_given_up_ = 0;    // groups of the last take() that the hub gave up: they have left its count already
};

}  // namespace temper
