// A group's completions as a message carries them: checked once, judged by facts that are gathered meanwhile, kept and
// logged as the bytes that came, and unfolded by who uses them. Immutable.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "comm/wire_format.h"
#include "core/rollout_types.h"

namespace temper {

// The oldest and newest version that drew a token.
struct VersionSpan {
  PolicyVersion oldest = 0;
  PolicyVersion newest = 0;
};

struct CompletionFacts {
  int64_t num_tokens = 0;
  int32_t lowest_id = 0, highest_id = 0;  // of its tokens; 0 without any
  int64_t num_rewards = 0;
  bool failed = false;  // its scoring: it has an error
};

class PackedCompletions {
 public:
  PackedCompletions() = default;  // of no completion
  // FormatError where a completion contradicts itself: arrays that differ in length, log-probabilities that are not
  // finite, a mask that is neither 0 nor 1.
  PackedCompletions(const std::vector<Completion>& completions);
  // Takes write_completions()' bytes. FormatError also where they are not that to the last bit.
  static PackedCompletions read(WireReader& reader);

  void write(WireWriter& writer) const;
  std::vector<Completion> unpack() const;

  int64_t size() const { return static_cast<int64_t>(facts_.size()); }
  bool empty() const { return facts_.empty(); }
  const std::vector<CompletionFacts>& facts() const { return facts_; }
  const std::optional<VersionSpan>& span() const { return span_; }  // nothing where there is no token

 private:
  std::string bytes_;  // but for their number
  std::vector<CompletionFacts> facts_;
  std::optional<VersionSpan> span_;
};

}  // namespace temper
