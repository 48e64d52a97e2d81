#include "data/prompt_dataset.h"

#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "data/held_out.h"
#include "data/jsonl_rows.h"
#include "data/utf8.h"

namespace temper {
namespace {

using nlohmann::json;

// The answer as the file has it; empty if there is none.
std::string whole_answer(const json& fields, const DatasetOptions& options) {
  return has_field(fields, options.answer_field) ? text_of(fields[options.answer_field]) : "";
}

std::string final_answer(const std::string& answer) {
  const size_t mark = answer.rfind("####");
  return std::string(mark == std::string::npos ? answer : strip(std::string_view(answer).substr(mark + 4)));
}

std::vector<int32_t> encode_row(const JsonlRow& row, const PromptEncoder& encoder) {
  if (!row.token_ids.empty()) return row.token_ids;
  return row.messages.empty() ? encoder.encode(row.prompt) : encoder.encode(row.messages);
}

// {"text": "..."}: language modelling.
bool is_plain_text(const json& fields, const DatasetOptions& options) {
  return !has_prompt(fields, options) && has_field(fields, "text") && !has_field(fields, options.completion_field);
}

SftExample encode_row_to_learn(JsonlRow& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  const json& fields = *row.fields;
  if (is_plain_text(fields, options)) {
    if (!fields["text"].is_string()) throw FormatError("'text' must be a text; found {}.", fields["text"].dump());
    row.text = fields["text"];
    return encoder.encode_text(row.text);
  }
  read_prompt(row, options, encoder.tokenizer());
  if (!row.token_ids.empty())
    throw FormatError("prompt_token_ids cannot be learned from. Give prompt and completion, or messages.");
  const auto completion = fields.find(options.completion_field);
  const bool completed = completion != fields.end() && !completion->is_null();
  if (!row.messages.empty()) {
    std::vector<Message> messages = row.messages;
    if (completed) {
      const auto rest = completion->is_array() ? messages_of(*completion, options.completion_field)
                                               : std::vector<Message>{{"assistant", text_of(*completion)}};
      messages.insert(messages.end(), rest.begin(), rest.end());
    }
    return encoder.encode_example(messages);
  }
  const std::string text = completed ? text_of(*completion) : whole_answer(fields, options);
  if (text.empty()) {
    throw FormatError(
        "has neither '{}' nor '{}' to learn from; its fields are {}. Name one with data.completion_field.",
        options.completion_field, options.answer_field, field_names(fields));
  }
  return encoder.encode_example(row.prompt, text);
}

std::string hash_of(const std::string& name, const std::vector<Problem>& problems) {
  TextHash hash;
  hash.add(name);
  for (const Problem& problem : problems)
    hash.add(problem.prompt), hash.add(problem.answer), hash.add(problem.completion);
  return hash.digest_hex();
}

}  // namespace

Prompt prompt_of(const Problem& problem, const PromptEncoder& encoder) {
  Prompt prompt;
  prompt.token_ids = encoder.encode(problem.prompt);
  prompt.text = problem.prompt;
  prompt.answer = problem.answer;
  return prompt;
}

PromptDataset PromptDataset::load(const std::string& path, const DatasetOptions& options,
                                  const PromptEncoder& encoder) {
  PromptDataset dataset;
  dataset.name_ = std::filesystem::path(path).stem();
  LengthLimit too_long{path, "data.max_prompt_length", options.max_prompt_length};
  dataset.hash_ = for_each_row(path, [&](JsonlRow& row) {
    read_prompt(row, options, encoder.tokenizer());
    Prompt prompt;
    prompt.serial = prompt.line = row.line;
    prompt.token_ids = encode_row(row, encoder);
    const auto length = static_cast<int64_t>(prompt.token_ids.size());
    if (too_long.skips(row.line, length)) {
      if (options.skip_long) return;
      throw ConfigError(
          "the prompt has {} tokens, data.max_prompt_length allows {}. Shorten it or raise data.max_prompt_length.",
          length, options.max_prompt_length);
    }
    prompt.text = std::move(row.text);
    prompt.answer = final_answer(whole_answer(*row.fields, options));
    for (const auto& [name, value] : row.fields->items())
      if (name != options.prompt_field && name != options.answer_field && name != "messages" &&
          name != "prompt_token_ids")
        prompt.fields[name] = value.dump();
    dataset.prompts_.push_back(std::move(prompt));
  });
  too_long.warn();
  dataset.num_skipped_ = too_long.num_skipped;
  return dataset;
}

PromptDataset PromptDataset::of_problems(const std::string& name, const std::vector<Problem>& problems,
                                         const PromptEncoder& encoder) {
  PromptDataset dataset;
  dataset.name_ = name;
  for (const Problem& problem : problems) {
    Prompt prompt = prompt_of(problem, encoder);
    prompt.serial = prompt.line = dataset.size();
    dataset.prompts_.push_back(std::move(prompt));
  }
  dataset.hash_ = hash_of(name, problems);
  return dataset;
}

std::pair<PromptDataset, PromptDataset> PromptDataset::split(double held_out_share) const {
  PromptDataset train = *this, held_out = *this;
  const auto is_out = [&](const Prompt& prompt) { return is_held_out(prompt.text, held_out_share); };
  std::erase_if(train.prompts_, is_out);
  std::erase_if(held_out.prompts_, std::not_fn(is_out));
  return {std::move(train), std::move(held_out)};
}

SftDataset SftDataset::load(const std::string& path, const DatasetOptions& options, const PromptEncoder& encoder,
                            int64_t max_length) {
  SftDataset dataset;
  LengthLimit too_long{path, "train.max_tokens_per_micro_batch", max_length};
  LengthLimit long_prompt{path, "data.max_prompt_length", options.max_prompt_length};
  dataset.hash_ = for_each_row(path, [&](JsonlRow& row) {
    SftExample example = encode_row_to_learn(row, options, encoder);
    example.line = row.line;
    if (long_prompt.skips(row.line, example.prompt_length) ||
        too_long.skips(row.line, static_cast<int64_t>(example.token_ids.size())))
      return;
    dataset.examples_.push_back(std::move(example));
    dataset.prompt_texts_.push_back(std::move(row.text));
  });
  too_long.warn();
  long_prompt.warn();
  dataset.num_skipped_ = too_long.num_skipped + long_prompt.num_skipped;
  return dataset;
}

SftDataset SftDataset::of_problems(const std::string& name, const std::vector<Problem>& problems,
                                   const PromptEncoder& encoder) {
  SftDataset dataset;
  for (const Problem& problem : problems) {
    SftExample example = encoder.encode_example(problem.prompt, problem.completion);
    example.line = dataset.size();
    dataset.examples_.push_back(std::move(example));
    dataset.prompt_texts_.push_back(problem.prompt);
  }
  dataset.hash_ = hash_of(name, problems);
  return dataset;
}

}  // namespace temper
