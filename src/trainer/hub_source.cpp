#include "trainer/hub_source.h"

#include "comm/wire_format.h"
#include "core/clock.h"
#include "core/log.h"

namespace temper {
namespace {

using Clock = std::chrono::steady_clock;

constexpr auto kPatience = std::chrono::seconds(5);  // then the ranks hear that nothing is there yet
constexpr double kWarnAfterS = 60;

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
  for (bool late = false; groups_.empty() && !late;) {
    std::vector<RolloutGroup> groups = collect(deadline);
    late = Clock::now() >= deadline;
    share(std::move(groups), late);
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

// The next group, with what else is there already; on the first rank alone.
std::vector<RolloutGroup> HubSource::collect(Clock::time_point deadline) const {
  std::vector<RolloutGroup> groups;
  if (service_ == nullptr) return groups;
  const Clock::time_point patience = Clock::now() + kPatience;
  if (auto group = service_->next_group(std::min(deadline, patience))) groups.push_back(std::move(*group));
  return groups;
}

// The first rank's groups reach all, and whether its time is up: clocks differ.
void HubSource::share(std::vector<RolloutGroup> groups, bool& late) {
  if (ranks_.size() == 1) {
    for (RolloutGroup& group : groups) groups_.push_back(std::move(group));
    return;
  }
  WireWriter writer;
  if (service_ != nullptr) {
    writer.number(static_cast<uint8_t>(late));
    for (const RolloutGroup& group : groups) write_group(group, writer);
  }
  const std::string text = ranks_.communicator()->gather_texts("groups of the hub", writer.take()).front();
  WireReader reader(text);
  late = reader.number<uint8_t>() != 0;
  while (!reader.at_end()) groups_.push_back(read_group(reader));
}

}  // namespace temper
