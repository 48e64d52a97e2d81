#include "comm/wire_format.h"

#include <algorithm>
#include <cstring>

#include "core/error.h"

namespace temper {
namespace {

constexpr size_t kTextBytes = sizeof(int64_t);  // of an empty text or array

}  // namespace

void write_prompt(const Prompt& prompt, WireWriter& writer) {
  writer.number(prompt.serial);
  writer.number(prompt.line);
  writer.array(prompt.token_ids);
  writer.text(prompt.text);
  writer.text(prompt.answer);
  writer.number(static_cast<int64_t>(prompt.fields.size()));
  for (const auto& [name, value] : prompt.fields) {
    writer.text(name);
    writer.text(value);
  }
}

Prompt read_prompt(WireReader& reader) {
  Prompt prompt;
  prompt.serial = reader.number<int64_t>();
  prompt.line = reader.number<int64_t>();
  prompt.token_ids = reader.array<int32_t>();
  prompt.text = reader.text();
  prompt.answer = reader.text();
  for (auto left = reader.length(2 * kTextBytes); left > 0; --left) {
    std::string name = reader.text();
    prompt.fields[std::move(name)] = reader.text();
  }
  return prompt;
}

void write_completion(const Completion& completion, WireWriter& writer) {
  const std::vector<float>&logprobs = completion.logprobs, &behavior = completion.behavior_logprobs;
  // At temperature 1 they are the same bits.
  const bool same = behavior.size() == logprobs.size() &&
                    (logprobs.empty() || std::memcmp(behavior.data(), logprobs.data(), 4 * logprobs.size()) == 0);
  writer.ids(completion.token_ids);
  writer.array(logprobs);
  writer.number(static_cast<uint8_t>(same));
  if (!same) writer.array(behavior);
  writer.runs(completion.policy_versions);
  writer.runs(completion.mask);
  writer.text(completion.text);
  writer.number(static_cast<uint8_t>(completion.finish_reason));
  writer.array(completion.rewards);
  writer.text(completion.error);
}

Completion read_completion(WireReader& reader) {
  Completion completion;
  completion.token_ids = reader.ids();
  completion.logprobs = reader.array<float>();
  completion.behavior_logprobs = reader.flag() ? completion.logprobs : reader.array<float>();
  completion.policy_versions = reader.runs<PolicyVersion>(completion.token_ids.size());
  completion.mask = reader.runs<uint8_t>(completion.token_ids.size());
  completion.text = reader.text();
  completion.finish_reason = reader.choice(FinishReason::kAborted);
  completion.rewards = reader.array<double>();
  completion.error = reader.text();
  return completion;
}

void write_completions(const std::vector<Completion>& completions, WireWriter& writer) {
  writer.number(static_cast<int64_t>(completions.size()));
  for (const Completion& completion : completions) write_completion(completion, writer);
}

std::vector<Completion> read_completions(WireReader& reader) {
  std::vector<Completion> completions(static_cast<size_t>(reader.length(kEmptyCompletionBytes)));
  for (Completion& completion : completions) completion = read_completion(reader);
  return completions;
}

int64_t WireReader::length(size_t element_bytes) {
  const auto count = number<int64_t>();
  if (count < 0 || static_cast<uint64_t>(count) > bytes_.size() / element_bytes)
    throw FormatError("a message is cut short: {} elements of {} bytes, {} bytes are left.", count, element_bytes,
                      bytes_.size());
  return count;
}

std::string_view WireReader::array_bytes(size_t element_bytes) {
  const std::string_view found = bytes_.substr(0, static_cast<size_t>(length(element_bytes)) * element_bytes);
  bytes_.remove_prefix(found.size());
  return found;
}

size_t WireReader::run_length(size_t most) {
  const auto count = number<int64_t>();
  if (count < 1 || static_cast<uint64_t>(count) > most)
    throw FormatError("a message has a run of {} values where {} are left.", count, most);
  return static_cast<size_t>(count);
}

void WireWriter::ids(const std::vector<int32_t>& values) {
  const bool narrow = std::all_of(values.begin(), values.end(), [](int32_t id) { return id >= 0 && id <= UINT16_MAX; });
  number(static_cast<uint8_t>(narrow));
  if (!narrow) return array(values);
  number(static_cast<int64_t>(values.size()));
  const size_t begin = bytes_.size();
  bytes_.resize(begin + values.size() * sizeof(uint16_t));
  char* to = bytes_.data() + begin;
  for (const int32_t value : values) {
    const auto id = static_cast<uint16_t>(value);
    std::memcpy(to, &id, sizeof id);
    to += sizeof id;
  }
}

std::vector<int32_t> WireReader::ids() {
  if (!flag()) return array<int32_t>();
  std::vector<int32_t> values(static_cast<size_t>(length(sizeof(uint16_t))));
  const char* from = bytes_.data();
  for (int32_t& value : values) {
    uint16_t id = 0;
    std::memcpy(&id, from, sizeof id);
    from += sizeof id;
    value = id;
  }
  bytes_.remove_prefix(values.size() * sizeof(uint16_t));
  return values;
}

uint8_t WireReader::choice_up_to(uint8_t last) {
  const auto value = number<uint8_t>();
  if (value > last) throw FormatError("a message has {} for a choice.", int{value});
  return value;
}

void WireReader::copy(void* to, size_t count) {
  if (count > bytes_.size())
    throw FormatError("a message is cut short: {} bytes wanted, {} left.", count, bytes_.size());
  if (count == 0) return;  // an empty vector has no address to copy to
  std::memcpy(to, bytes_.data(), count);
  bytes_.remove_prefix(count);
}

void write_group(const RolloutGroup& group, WireWriter& writer) {
  write_prompt(group.prompt, writer);
  writer.number(static_cast<uint8_t>(group.purpose));
  write_completions(group.completions, writer);
  writer.number(static_cast<uint8_t>(group.baseline_reward.has_value()));
  writer.number(group.baseline_reward.value_or(0));
  writer.number(group.margin);
}

RolloutGroup read_group(WireReader& reader) {
  RolloutGroup group;
  group.prompt = read_prompt(reader);
  group.purpose = reader.choice(RolloutPurpose::kBaseline);
  group.completions = read_completions(reader);
  const bool has_baseline = reader.number<uint8_t>() != 0;
  const auto baseline = reader.number<double>();
  if (has_baseline) group.baseline_reward = baseline;
  group.margin = reader.number<double>();
  return group;
}

}  // namespace temper
