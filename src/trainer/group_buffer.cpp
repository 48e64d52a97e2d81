#include "trainer/group_buffer.h"

#include <algorithm>
#include <iterator>

#include "core/error.h"

namespace temper {

GroupBuffer::GroupBuffer(const StalenessLimits& limits, PolicyVersion version, const RolloutRules& rules)
    : limits_(limits), rules_(rules), first_version_(version), version_(version) {
  TEMPER_CHECK(limits.max_staleness >= 0 && limits.groups_per_step > 0 && limits.max_concurrent > 0,
               "max_staleness {}, groups_per_step {}, max_concurrent {}", limits.max_staleness, limits.groups_per_step,
               limits.max_concurrent);
}

int64_t GroupBuffer::free() const {
  const int64_t accepted = in_batches_ + num_finished();
  const int64_t steps = version_ - first_version_;
  const int64_t by_running = limits_.max_concurrent - running_;
  const int64_t by_staleness = (limits_.max_staleness + steps + 1) * limits_.groups_per_step - (accepted + running_);
  if (!rules_.bound_by_staleness) return by_running;
  if (!rules_.bound_by_running) return by_staleness;
  return std::min(by_running, by_staleness);
}

PolicyVersion GroupBuffer::next_floor() const {
  const int64_t number = in_batches_ + num_finished() + running_;
  return std::max<PolicyVersion>(0, first_version_ + number / limits_.groups_per_step - limits_.max_staleness);
}

void GroupBuffer::begin(PolicyVersion floor) {
  ++running_;
  ++waiting_[floor];
}

void GroupBuffer::give_up(PolicyVersion floor) {
  leave(floor);
  if (rules_.uncount_ended) --running_;
}

bool GroupBuffer::finish(PolicyVersion floor, Finished finished) {
  leave(floor);
  --running_;
  if (version_ - finished.oldest > limits_.max_staleness && rules_.check_at_consumption) return false;
  ++waiting_[finished.oldest];
  auto place = ready_.end();  // from the back: most are the newest so far
  while (place != ready_.begin() && std::prev(place)->oldest > finished.oldest) --place;
  ready_.insert(place, std::move(finished));
  return true;
}

std::optional<GroupBuffer::Finished> GroupBuffer::take(std::vector<Finished>& dropped) {
  while (!ready_.empty() && rules_.check_at_consumption && is_lost(ready_.front().oldest)) {
    leave(ready_.front().oldest);
    dropped.push_back(std::move(ready_.front()));
    ready_.pop_front();
  }
  // Of several finished groups the oldest leaves the most slots: if it may not be taken, none may.
  if (ready_.empty() || !leaves_slots(ready_.front().oldest)) return std::nullopt;
  Finished taken = std::move(ready_.front());
  ready_.pop_front();
  leave(taken.oldest);
  ++in_batches_;
  return taken;
}

void GroupBuffer::filtered() {
  if (rules_.uncount_ended) --in_batches_;
}

void GroupBuffer::advance(PolicyVersion version) {
  TEMPER_CHECK(version > version_, "version {} after {}", version, version_);
  version_ = version;
  // A short batch has used its step all the same.
  in_batches_ = std::max(in_batches_, (version - first_version_) * limits_.groups_per_step);
}

// Whether those that must be taken before this one still fit once it has taken a slot: for every version d from now to
// its own last one, waiting(last version <= d) <= slots up to and with step d.
bool GroupBuffer::leaves_slots(PolicyVersion oldest) const {
  if (limits_.policy != StalenessPolicy::kWait || !rules_.keep_slots) return true;
  int64_t must = 0;
  for (const auto& [floor, count] : waiting_) {
    if (floor >= oldest) break;
    const PolicyVersion last = floor + limits_.max_staleness;
    if (last < version_) continue;  // lost: nothing is kept for it
    must += count;
    if (must > (last - first_version_ + 1) * limits_.groups_per_step - (in_batches_ + 1)) return false;
  }
  return true;
}

void GroupBuffer::leave(PolicyVersion floor) {
  const auto found = waiting_.find(floor);
  TEMPER_CHECK(found != waiting_.end(), "no group of version {} was begun", floor);
  if (--found->second == 0) waiting_.erase(found);
}

}  // namespace temper
