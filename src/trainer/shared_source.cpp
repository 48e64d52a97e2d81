#include "trainer/shared_source.h"

#include "comm/wire_format.h"

namespace temper {

void SharedRolloutSource::request(std::vector<Prompt> prompts, int num_completions, const SamplingParams& sampling,
                                  RolloutPurpose purpose) {
  std::vector<Prompt> own;
  for (size_t i = 0; i < prompts.size(); ++i)
    if (static_cast<int>(i) % ranks_.size() == ranks_.rank()) own.push_back(std::move(prompts[i]));
  outstanding_ = outstanding_ || !prompts.empty();
  num_own_ += static_cast<int64_t>(own.size());
  own_.request(std::move(own), num_completions, sampling, purpose);
}

std::optional<RolloutGroup> SharedRolloutSource::next_group(std::chrono::steady_clock::time_point deadline) {
  if (groups_.empty() && outstanding_) {
    WireWriter writer;
    for (; num_own_ > 0; --num_own_) {
      const std::optional<RolloutGroup> group = own_.next_group(deadline);
      if (!group) break;  // late: the others get what there is, the caller counts
      write_group(*group, writer);
    }
    for (const std::string& text : ranks_.communicator()->gather_texts("groups", writer.take()))
      for (WireReader reader(text); !reader.at_end();) groups_.push_back(read_group(reader));
    outstanding_ = ranks_.sum(num_own_) > 0;
  }
  if (groups_.empty()) return std::nullopt;
  RolloutGroup group = std::move(groups_.front());
  groups_.pop_front();
  return group;
}

}  // namespace temper
