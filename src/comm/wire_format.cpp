#include "comm/wire_format.h"

#include <cstring>

#include "core/error.h"

namespace temper {
namespace {

constexpr size_t kTextBytes = sizeof(int64_t);           // of an empty text or array
constexpr size_t kCompletionBytes = 8 * kTextBytes + 1;  // of an empty completion

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

namespace {

void write_completion(const Completion& completion, WireWriter& writer) {
  writer.array(completion.token_ids);
  writer.array(completion.logprobs);
  writer.array(completion.behavior_logprobs);
  writer.array(completion.policy_versions);
  writer.array(completion.mask);
  writer.text(completion.text);
  writer.number(static_cast<uint8_t>(completion.finish_reason));
  writer.array(completion.rewards);
  writer.text(completion.error);
}

Completion read_completion(WireReader& reader) {
  Completion completion;
  completion.token_ids = reader.array<int32_t>();
  completion.logprobs = reader.array<float>();
  completion.behavior_logprobs = reader.array<float>();
  completion.policy_versions = reader.array<PolicyVersion>();
  completion.mask = reader.array<uint8_t>();
  completion.text = reader.text();
  completion.finish_reason = reader.choice(FinishReason::kAborted);
  completion.rewards = reader.array<double>();
  completion.error = reader.text();
  return completion;
}

}  // namespace

void write_completions(const std::vector<Completion>& completions, WireWriter& writer) {
  writer.number(static_cast<int64_t>(completions.size()));
  for (const Completion& completion : completions) write_completion(completion, writer);
}

std::vector<Completion> read_completions(WireReader& reader) {
  std::vector<Completion> completions(static_cast<size_t>(reader.length(kCompletionBytes)));
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
