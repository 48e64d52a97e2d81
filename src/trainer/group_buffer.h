// The only staleness rule: how many groups may be begun, with how old weights, and which finished groups a batch may
// take. The hub tells it what is leased, finished and given up; the trainer takes groups from it and says when a step
// was taken. One thread.
//
// Admission (AReaL, Fu et al. 2025, https://arxiv.org/abs/2505.24298, section 5.1), in groups:
//   free = min(max_concurrent - running, (max_staleness + version + 1) * groups_per_step - (accepted + running))
// where version counts steps and accepted the groups that were in a batch or still may be: a group that is dropped,
// filtered or failed leaves the count. The group that is begun as number n of them (from 0) will be in step
// n / groups_per_step at the latest, so its tokens may be as old as that step's version - max_staleness: its floor.
//
// A group's staleness is its oldest token's. In a batch of version v it is at most max_staleness, or the group is
// dropped (counted, and its prompt is given out again). With kWait a batch's slots are kept for those that would become
// too old: taking a group is refused while so many others must be taken by some earlier step that they need every slot
// up to there. A batch that ends short (failed groups, refills used up) wastes slots; what becomes too old then is
// dropped.
#pragma once
#include <cstdint>
#include <list>
#include <map>
#include <optional>
#include <vector>

#include "comm/packed_completions.h"
#include "comm/rollout_rules.h"
#include "config/choices.h"
#include "core/rollout_types.h"

namespace temper {

struct StalenessLimits {
  int64_t max_staleness = 0;
  int64_t groups_per_step = 1;
  int64_t max_concurrent = 1 << 20;  // groups running at once
  StalenessPolicy policy = StalenessPolicy::kDrop;
};

class GroupBuffer {
 public:
  struct Finished {
    int64_t ticket = 0;  // the hub's name of it
    PolicyVersion oldest = 0;
    PackedCompletions completions = {};
  };

  // version: of the weights at the (resumed) start, from which steps and groups are counted.
  GroupBuffer(const StalenessLimits& limits, PolicyVersion version, const RolloutRules& rules = {});

  int64_t free() const;
  PolicyVersion next_floor() const;  // the oldest version that the next group to be begun may have

  void begin(PolicyVersion floor);    // free() > 0
  void give_up(PolicyVersion floor);  // of one that was begun, without a group
  // One that was begun is finished; oldest is that of its tokens. False: too stale already, it has left the count.
  bool finish(PolicyVersion floor, Finished finished);

  // The next group for a batch of this version: the oldest, of equals the first to arrive. Groups that are too stale
  // are appended to dropped and leave the count. Nothing: none is there, or slots must be kept.
  std::optional<Finished> take(std::vector<Finished>& dropped);
  // A group that was taken teaches nothing: it leaves the count, so that another comes in its place.
  void filtered();
  // The step that the taken groups were for is done.
  void advance(PolicyVersion version);

  // No step can take what was begun with this floor.
  bool is_lost(PolicyVersion floor) const { return floor + limits_.max_staleness < version_; }

  PolicyVersion version() const { return version_; }
  const StalenessLimits& limits() const { return limits_; }
  int64_t num_running() const { return running_; }
  int64_t num_finished() const { return static_cast<int64_t>(ready_.size()); }
  int64_t num_in_batches() const { return in_batches_; }

 private:
  bool leaves_slots(PolicyVersion oldest) const;
  void leave(PolicyVersion floor);

  StalenessLimits limits_;
  RolloutRules rules_;
  PolicyVersion first_version_;
  PolicyVersion version_;
  int64_t running_ = 0;
  int64_t in_batches_ = 0;                    // taken and not filtered, since the start
  std::map<PolicyVersion, int64_t> waiting_;  // begun or finished, not taken: how many of each floor or oldest version
  std::list<Finished> ready_;                 // by age, then arrival
};

}  // namespace temper
