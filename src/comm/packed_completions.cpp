#include "comm/packed_completions.h"

#include <algorithm>
#include <cstring>
#include <string_view>

#include "core/error.h"

namespace temper {
namespace {

// T at an address of any alignment.
template <class T>
T at(const char* bytes, size_t index) {
  T value;
  std::memcpy(&value, bytes + index * sizeof(T), sizeof value);
  return value;
}

template <class Id>
void note_ids(std::string_view bytes, CompletionFacts& facts) {
  const size_t count = bytes.size() / sizeof(Id);
  facts.num_tokens = static_cast<int64_t>(count);
  if (count == 0) return;
  Id lowest = at<Id>(bytes.data(), 0), highest = lowest;
  for (size_t i = 1; i < count; ++i) {
    const Id id = at<Id>(bytes.data(), i);
    lowest = std::min(lowest, id);
    highest = std::max(highest, id);
  }
  facts.lowest_id = lowest;
  facts.highest_id = highest;
}

// Without a branch in the loop: the exponent of a float that is not finite has all its bits.
bool are_finite(std::string_view bytes) {
  constexpr uint32_t kExponent = 0x7F800000;
  uint32_t bad = 0;
  for (size_t i = 0; i < bytes.size() / sizeof(uint32_t); ++i)
    bad |= static_cast<uint32_t>((at<uint32_t>(bytes.data(), i) & kExponent) == kExponent);
  return bad == 0;
}

int64_t read_logprobs(WireReader& reader, int64_t num_tokens) {
  const std::string_view bytes = reader.array_bytes(sizeof(float));
  if (!are_finite(bytes))
    throw FormatError("a completion of {} tokens comes with a log-probability that is not finite.", num_tokens);
  return static_cast<int64_t>(bytes.size() / sizeof(float));
}

// Calls see(value) for each run; the number of values.
template <class T, class See>
int64_t read_runs(WireReader& reader, int64_t most, const See& see) {
  int64_t total = 0;
  for (auto left = reader.length(sizeof(T) + sizeof(int64_t)); left > 0; --left) {
    see(reader.number<T>());
    total += static_cast<int64_t>(reader.run_length(static_cast<size_t>(most - total)));
  }
  return total;
}

CompletionFacts read_completion(WireReader& reader, std::optional<VersionSpan>& span) {
  CompletionFacts facts;
  if (reader.flag())
    note_ids<uint16_t>(reader.array_bytes(sizeof(uint16_t)), facts);
  else
    note_ids<int32_t>(reader.array_bytes(sizeof(int32_t)), facts);
  const int64_t size = facts.num_tokens;
  const int64_t num_logprobs = read_logprobs(reader, size);
  const int64_t num_behavior = reader.flag() ? num_logprobs : read_logprobs(reader, size);
  const int64_t num_versions = read_runs<PolicyVersion>(reader, size, [&span](PolicyVersion version) {
    if (!span) span = {version, version};
    *span = {std::min(span->oldest, version), std::max(span->newest, version)};
  });
  const int64_t num_mask = read_runs<uint8_t>(reader, size, [](uint8_t mask) {
    if (mask > 1) throw FormatError("a completion's mask has the value {}.", int{mask});
  });
  if (num_logprobs != size || num_behavior != size || num_versions != size || num_mask != size)
    throw FormatError("a completion of {} tokens comes with {}, {}, {} and {} numbers for them.", size, num_logprobs,
                      num_behavior, num_versions, num_mask);
  reader.array_bytes(1);  // its text
  reader.choice(FinishReason::kAborted);
  facts.num_rewards = static_cast<int64_t>(reader.array_bytes(sizeof(double)).size() / sizeof(double));
  facts.failed = !reader.array_bytes(1).empty();
  return facts;
}

}  // namespace

PackedCompletions PackedCompletions::read(WireReader& reader) {
  PackedCompletions packed;
  packed.facts_.resize(static_cast<size_t>(reader.length(kEmptyCompletionBytes)));
  const std::string_view before = reader.left();
  for (CompletionFacts& facts : packed.facts_) facts = read_completion(reader, packed.span_);
  packed.bytes_ = before.substr(0, before.size() - reader.left().size());
  return packed;
}

PackedCompletions::PackedCompletions(const std::vector<Completion>& completions) {
  WireWriter writer;
  for (const Completion& completion : completions) write_completion(completion, writer);
  bytes_ = writer.take();
  WireReader reader(bytes_);
  facts_.resize(completions.size());
  for (CompletionFacts& facts : facts_) facts = read_completion(reader, span_);
}

void PackedCompletions::write(WireWriter& writer) const {
  writer.number(size());
  writer.bytes(bytes_);
}

std::vector<Completion> PackedCompletions::unpack() const {
  std::vector<Completion> completions(facts_.size());
  WireReader reader(bytes_);
  for (Completion& completion : completions) completion = temper::read_completion(reader);
  return completions;
}

}  // namespace temper
