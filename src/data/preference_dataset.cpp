#include "data/preference_dataset.h"

#include <algorithm>
#include <cmath>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/jsonl_rows.h"
#include "data/utf8.h"

namespace temper {
namespace {

using nlohmann::json;

constexpr const char* kShape = "{\"prompt\": \"...\", \"chosen\": \"...\", \"rejected\": \"...\"}";

double margin_of(const json& fields) {
  if (!has_field(fields, "margin")) return 0;
  const json& margin = fields["margin"];
  if (!margin.is_number() || !std::isfinite(margin.get<double>()))
    throw FormatError("'margin' must be a finite number; found {}. Correct it or leave it out.", margin.dump());
  return margin.get<double>();
}

void check_completion(const char* name, const std::string& text) {
  if (strip(text).empty()) throw FormatError("the completion of '{}' is empty. Give a text or remove the line.", name);
}

void refuse_equal(bool equal) {
  if (equal) throw FormatError("'chosen' and 'rejected' are the same: nothing can be preferred. Remove the line.");
}

void read_pair_prompt(JsonlRow& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  read_prompt(row, options, encoder.tokenizer());
  if (!row.token_ids.empty())
    throw FormatError("prompt_token_ids cannot be learned from. Give the prompt as a text or as messages.");
}

[[noreturn]] void refuse_no_prompt() {
  throw FormatError("has no prompt, and 'chosen' and 'rejected' do not begin with the same. Give the prompt apart: {}.",
                    kShape);
}

// Both texts begin with the prompt: as far as they agree in whole words. The blank after it is the completions', as
// tokenizers like it.
size_t shared_text(const std::string& chosen, const std::string& rejected) {
  const size_t shorter = std::min(chosen.size(), rejected.size());
  auto end = static_cast<size_t>(
      std::mismatch(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(shorter), rejected.begin()).first -
      chosen.begin());
  if (end == shorter) return end;  // one is the beginning of the other
  while (end > 0 && chosen[end - 1] != ' ' && chosen[end - 1] != '\n') --end;
  while (end > 0 && chosen[end - 1] == ' ') --end;
  return end;
}

// What follows the shared messages: one answer of the assistant.
Message answer_of(const char* name, const std::vector<Message>& messages, size_t shared) {
  if (messages.size() == shared)
    throw FormatError("the completion of '{}' is empty: all its messages are the prompt's. Give an answer.", name);
  const Message& answer = messages[shared];
  if (messages.size() > shared + 1 || answer.role != "assistant")
    throw FormatError(
        "'{}' must end with one message of the assistant after what it shares with the other; it has {}, the first by "
        "'{}'. Cut the conversations where they part.",
        name, messages.size() - shared, answer.role);
  check_completion(name, answer.content);
  return answer;
}

struct Completed {
  SftExample chosen, rejected;
};

Completed encode_conversations(JsonlRow& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  const json& fields = *row.fields;
  const std::vector<Message> chosen = messages_of(fields["chosen"], "chosen");
  const std::vector<Message> rejected = messages_of(fields["rejected"], "rejected");
  refuse_equal(chosen == rejected);
  const size_t shorter = std::min(chosen.size(), rejected.size());
  const auto shared = static_cast<size_t>(
      std::mismatch(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(shorter), rejected.begin()).first -
      chosen.begin());
  std::vector<Message> prompt(chosen.begin(), chosen.begin() + static_cast<std::ptrdiff_t>(shared));
  if (has_prompt(fields, options)) {
    read_pair_prompt(row, options, encoder);
    // A prompt may be given although the conversations begin with it, as a text or as messages.
    const std::vector<Message>& given = row.messages;
    const bool repeated = given.size() <= shared && std::equal(given.begin(), given.end(), chosen.begin());
    if (given.empty() && shared == 0) prompt = {{"user", row.prompt}};
    if (!repeated) prompt.insert(prompt.begin(), given.begin(), given.end());
  } else if (shared == 0) {
    refuse_no_prompt();
  }
  const Message good = answer_of("chosen", chosen, shared), bad = answer_of("rejected", rejected, shared);
  row.text.clear();
  for (const Message& message : prompt)
    if (message.role == "user") row.text = message.content;
  const auto with = [&prompt](const Message& answer) {
    std::vector<Message> whole = prompt;
    whole.push_back(answer);
    return whole;
  };
  return {encoder.encode_example(with(good)), encoder.encode_example(with(bad))};
}

Completed encode_texts(JsonlRow& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  const json& fields = *row.fields;
  std::string chosen = fields["chosen"], rejected = fields["rejected"];
  refuse_equal(chosen == rejected);
  if (has_prompt(fields, options)) {
    read_pair_prompt(row, options, encoder);
  } else {
    const size_t shared = shared_text(chosen, rejected);
    if (shared == 0) refuse_no_prompt();
    row.text = row.prompt = chosen.substr(0, shared);
    chosen.erase(0, shared);
    rejected.erase(0, shared);
    if (!options.prompt_template.empty()) row.prompt = fill_template(options.prompt_template, row);
  }
  check_completion("chosen", chosen);
  check_completion("rejected", rejected);
  if (row.messages.empty())
    return {encoder.encode_example(row.prompt, chosen), encoder.encode_example(row.prompt, rejected)};
  const auto with = [&row](const std::string& answer) {
    std::vector<Message> whole = row.messages;
    whole.push_back({"assistant", answer});
    return whole;
  };
  return {encoder.encode_example(with(chosen)), encoder.encode_example(with(rejected))};
}

void check_pair(const PreferenceExample& pair) {
  refuse_equal(pair.chosen.token_ids == pair.rejected.token_ids);
  const int64_t length = pair.chosen.prompt_length;
  TEMPER_CHECK(length == pair.rejected.prompt_length &&
                   std::equal(pair.chosen.token_ids.begin(), pair.chosen.token_ids.begin() + length,
                              pair.rejected.token_ids.begin()),
               "the prompts of a pair differ: {} and {} tokens", length, pair.rejected.prompt_length);
}

PreferenceExample encode_pair(JsonlRow& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  const json& fields = *row.fields;
  for (const char* name : {"chosen", "rejected"})
    if (!has_field(fields, name))
      throw FormatError("has no '{}'; its fields are {}. A line is such as {}.", name, field_names(fields), kShape);
  const json &chosen = fields["chosen"], &rejected = fields["rejected"];
  const bool texts = chosen.is_string() && rejected.is_string(), lists = chosen.is_array() && rejected.is_array();
  if (!texts && !lists)
    throw FormatError("'chosen' and 'rejected' must be two texts, or two lists of messages. A line is such as {}.",
                      kShape);
  PreferenceExample pair;
  pair.line = row.line;
  pair.margin = margin_of(fields);
  Completed completed = texts ? encode_texts(row, options, encoder) : encode_conversations(row, options, encoder);
  pair.chosen = std::move(completed.chosen);
  pair.rejected = std::move(completed.rejected);
  pair.chosen.line = pair.rejected.line = row.line;
  check_pair(pair);
  return pair;
}

int64_t length_of(const PreferenceExample& pair) {
  return static_cast<int64_t>(pair.chosen.token_ids.size() + pair.rejected.token_ids.size()) -
         pair.chosen.prompt_length;
}

}  // namespace

PreferenceDataset PreferenceDataset::load(const std::string& path, const DatasetOptions& options,
                                          const PromptEncoder& encoder, int64_t max_length) {
  PreferenceDataset dataset;
  LengthLimit too_long{path, "train.max_tokens_per_micro_batch", max_length};
  LengthLimit long_prompt{path, "data.max_prompt_length", options.max_prompt_length};
  dataset.hash_ = for_each_row(path, [&](JsonlRow& row) {
    PreferenceExample pair = encode_pair(row, options, encoder);
    if (long_prompt.skips(row.line, pair.chosen.prompt_length) || too_long.skips(row.line, length_of(pair))) return;
    dataset.examples_.push_back(std::move(pair));
    dataset.prompt_texts_.push_back(std::move(row.text));
  });
  too_long.warn();
  long_prompt.warn();
  dataset.num_skipped_ = too_long.num_skipped + long_prompt.num_skipped;
  return dataset;
}

PreferenceDataset PreferenceDataset::of_pairs(const std::string& name, const std::vector<PreferencePair>& pairs,
                                              const PromptEncoder& encoder) {
  PreferenceDataset dataset;
  TextHash hash;
  hash.add(name);
  for (const PreferencePair& pair : pairs) {
    PreferenceExample example;
    example.chosen = encoder.encode_example(pair.prompt, pair.chosen);
    example.rejected = encoder.encode_example(pair.prompt, pair.rejected);
    example.line = example.chosen.line = example.rejected.line = dataset.size();
    check_pair(example);
    dataset.examples_.push_back(std::move(example));
    dataset.prompt_texts_.push_back(pair.prompt);
    hash.add(pair.prompt), hash.add(pair.chosen), hash.add(pair.rejected);
  }
  dataset.hash_ = hash.digest_hex();
  return dataset;
}

}  // namespace temper
