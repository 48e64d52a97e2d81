#include "trainer/hub_source.h"

#include "comm/wire_format.h"
#include "core/clock.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr double kWarnAfterS = 60;
constexpr std::chrono::milliseconds kLookForStop(100);

}  // namespace

void HubSource::request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                        RolloutPurpose purpose) {
  if (service_ != nullptr) service_->request(std::move(prompts), num_completions, sampling, purpose);
}

void HubSource::filtered(int64_t count) {
  if (service_ != nullptr && count > 0) service_->filtered(count);
}

std::optional<RolloutGroup> HubSource::next_group(Clock::time_point deadline) {
  const Stopwatch waiting;
  double warned_s = 0;
  for (Signs signs; groups_.empty() && !signs.late;) {
    const bool stop = stop_requested_();  // before the wait: it is to have its whole time
    std::vector<RolloutGroup> groups = collect(deadline, stop);
    signs = share(std::move(groups), {Clock::now() >= deadline, stop});
    if (signs.stop && groups_.empty()) throw StoppedWaiting();
    if (service_ == nullptr || !groups_.empty()) continue;
    check_();
    if (waiting.seconds() - warned_s < kWarnAfterS) continue;
    warned_s = waiting.seconds();
    log_warning("no group for {} s: {} rollout workers are here, {} groups are given out to them",
                static_cast<int64_t>(warned_s), service_->num_workers(), service_->num_leases());
  }
  wait_s_ += waiting.seconds();
  if (groups_.empty()) return std::nullopt;
  RolloutGroup group = std::move(groups_.front());
  groups_.pop_front();
  return group;
}

// The next group; on the first rank alone. Ends early where a stop is requested meanwhile, and, in a wait that began
// with it, where no worker is left: those of a job that is ended leave with it, and then nothing can come.
std::vector<RolloutGroup> HubSource::collect(Clock::time_point deadline, bool stopping) const {
  std::vector<RolloutGroup> groups;
  if (service_ == nullptr) return groups;
  const Clock::time_point end = std::min(deadline, Clock::now() + patience_);
  for (bool over = false; groups.empty() && !over;) {
    over = stopping ? service_->num_workers() == 0 : stop_requested_();
    const Clock::time_point now = Clock::now();
    if (auto group = service_->next_group(over ? now : std::min(end, now + kLookForStop)))
      groups.push_back(std::move(*group));
    over = over || Clock::now() >= end;
  }
  return groups;
}

// The first rank's groups reach all, with whether its time is up (clocks differ) and whether any rank is to stop.
HubSource::Signs HubSource::share(std::vector<RolloutGroup> groups, Signs own) {
  if (ranks_.size() == 1) {
    for (RolloutGroup& group : groups) groups_.push_back(std::move(group));
    return own;
  }
  WireWriter writer;
  writer.number(static_cast<uint8_t>(own.late));
  writer.number(static_cast<uint8_t>(own.stop));
  for (const RolloutGroup& group : groups) write_group(group, writer);  // the first rank alone has any
  Signs all;
  const std::vector<std::string> texts = ranks_.communicator()->gather_texts("groups of the hub", writer.take());
  for (size_t rank = 0; rank < texts.size(); ++rank) {
    WireReader reader(texts[rank]);
    const bool late = reader.flag();
    if (rank == 0) all.late = late;
    if (reader.flag()) all.stop = true;
    while (!reader.at_end()) groups_.push_back(read_group(reader));
  }
  return all;
}

}  // namespace temper
