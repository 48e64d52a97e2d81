#include "data/prompt_dataset.h"

#include <algorithm>
#include <cctype>
#include <filesystem>
#include <functional>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "core/hash.h"
#include "core/log.h"
#include "data/held_out.h"
#include "data/json_file.h"
#include "data/utf8.h"

namespace temper {
namespace {

using nlohmann::json;

// One line of the file: what it says, before tokenisation. Errors of a line are thrown without its place: for_each_row
// adds it.
struct Row {
  int64_t line = 0;  // from 0
  json fields;
  std::string prompt;              // text prompts
  std::vector<Message> messages;   // or messages
  std::vector<int32_t> token_ids;  // or ids
  std::string text;                // the user's words
};

std::string text_of(const json& value) { return value.is_string() ? value.get<std::string>() : value.dump(); }

std::vector<Message> messages_of(const json& value, const std::string& name) {
  std::vector<Message> messages;
  for (const auto& entry : value) {
    const bool good = entry.is_object() && entry.contains("role") && entry["role"].is_string() &&
                      entry.contains("content") && entry["content"].is_string();
    if (!good)
      throw FormatError("'{}' must be a list of {\"role\": \"...\", \"content\": \"...\"}; found {}.", name,
                        entry.dump());
    messages.push_back({entry["role"], entry["content"]});
  }
  if (messages.empty()) throw FormatError("'{}' is an empty list; give at least one message.", name);
  return messages;
}

std::string field_names(const json& fields) {
  std::vector<std::string> names;
  for (const auto& [name, value] : fields.items()) names.push_back(name);
  return names.empty() ? "none" : join(names);
}

// Puts the fields of a line into the holes of data.prompt_template. Braces around anything but a name stay.
std::string fill_template(const std::string& text, const Row& row) {
  std::string out;
  for (size_t i = 0; i < text.size();) {
    if (text.compare(i, 2, "{{") == 0 || text.compare(i, 2, "}}") == 0) {
      out += text[i];
      i += 2;
      continue;
    }
    size_t end = i + 1;
    const auto in_name = [](char c) { return std::isalnum(static_cast<unsigned char>(c)) != 0 || c == '_'; };
    while (end < text.size() && in_name(text[end])) ++end;
    if (text[i] != '{' || end == i + 1 || end >= text.size() || text[end] != '}') {
      out += text[i++];
      continue;
    }
    const std::string name = text.substr(i + 1, end - i - 1);
    if (row.fields.contains(name)) {
      out += text_of(row.fields[name]);
    } else if (name == "prompt") {
      out += row.prompt;
    } else {
      throw ConfigError(
          "data.prompt_template asks for {{}}, but the line's fields are {}. Name one of them, or write {{{}}} for "
          "braces in the text.",
          name, field_names(row.fields), name);
    }
    i = end + 1;
  }
  return out;
}

void read_prompt(Row& row, const DatasetOptions& options, const Tokenizer& tokenizer) {
  const json& fields = row.fields;
  const bool named = fields.contains(options.prompt_field);
  if (named && fields[options.prompt_field].is_string()) {
    row.text = row.prompt = fields[options.prompt_field];
    if (row.prompt.empty()) throw FormatError("'{}' is empty. Give a prompt or remove the line.", options.prompt_field);
    if (!options.prompt_template.empty()) row.prompt = fill_template(options.prompt_template, row);
    return;
  }
  const std::string list = named ? options.prompt_field : "messages";
  if (fields.contains(list) && fields[list].is_array()) {
    if (!options.prompt_template.empty())
      throw ConfigError("data.prompt_template is for prompts that are texts; this line has messages. Leave it out.");
    row.messages = messages_of(fields[list], list);
    for (const Message& message : row.messages)
      if (message.role == "user") row.text = message.content;
    return;
  }
  if (!named && fields.contains("prompt_token_ids")) {
    const json& ids = fields["prompt_token_ids"];
    if (!ids.is_array() || ids.empty() ||
        !std::all_of(ids.begin(), ids.end(), [](const json& id) { return id.is_number_integer(); }))
      throw FormatError("prompt_token_ids must be a list of token ids, at least one.");
    for (const json& id : ids) {
      const auto value = id.get<int64_t>();
      if (value < 0 || value >= tokenizer.vocab_size())
        throw FormatError("token id {} is outside the vocabulary of {}.", value, tokenizer.vocab_size());
      row.token_ids.push_back(static_cast<int32_t>(value));
    }
    row.text = tokenizer.decode(row.token_ids, false);
    return;
  }
  if (named) throw FormatError("'{}' must be a text or a list of messages.", options.prompt_field);
  throw FormatError(
      "has none of '{}', 'messages' and 'prompt_token_ids'; its fields are {}. Name the prompt's field with "
      "data.prompt_field.",
      options.prompt_field, field_names(fields));
}

// Calls `visit` with each line's row. Returns the content's hash.
std::string for_each_row(const std::string& path, const DatasetOptions& options, const Tokenizer& tokenizer,
                         const std::function<void(Row&)>& visit) {
  const std::string content = read_file(path);
  std::string_view rest = content;
  if (rest.starts_with("\xEF\xBB\xBF")) rest.remove_prefix(3);
  if (rest.empty())
    throw FormatError("{}: is empty. It needs one JSON object a line, such as {\"prompt\": \"...\"}.", path);
  for (int64_t line = 0; !rest.empty(); ++line) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    std::string_view text = rest.substr(0, end);
    rest.remove_prefix(std::min(end + 1, rest.size()));
    if (text.ends_with('\r')) text.remove_suffix(1);
    const std::string where = format("{}:{}", path, line + 1);
    if (text.find_first_not_of(" \t") == std::string_view::npos)
      throw FormatError("{}: the line is empty. Every line needs a JSON object; remove it.", where);
    Row row;
    row.line = line;
    row.fields = parse_json(text, where);
    try {
      if (!row.fields.is_object())
        throw FormatError("is no JSON object. A line is such as {\"prompt\": \"...\", \"answer\": \"...\"}.");
      read_prompt(row, options, tokenizer);
      visit(row);
    } catch (const FormatError& error) {
      throw FormatError("{}: {}", where, error.what());
    } catch (const ConfigError& error) {
      throw ConfigError("{}: {}", where, error.what());
    }
  }
  return xxh3_128_hex(content);
}

// The answer as the file has it; empty if there is none.
std::string whole_answer(const json& fields, const DatasetOptions& options) {
  const auto found = fields.find(options.answer_field);
  return found == fields.end() || found->is_null() ? "" : text_of(*found);
}

std::string final_answer(const std::string& answer) {
  const size_t mark = answer.rfind("####");
  return std::string(mark == std::string::npos ? answer : strip(std::string_view(answer).substr(mark + 4)));
}

// Counts what is left out for its length and warns once.
struct LengthLimit {
  const std::string& path;
  const char* key;
  int64_t limit;  // tokens; 0: none
  int64_t num_skipped = 0, first_line = 0, first_length = 0;
  bool skips(int64_t line, int64_t length) {
    if (limit <= 0 || length <= limit) return false;
    if (num_skipped++ == 0) first_line = line + 1, first_length = length;
    return true;
  }
  void warn() const {
    if (num_skipped > 0)
      log_warning("{}: lines left out because they are longer than {} = {} tokens: {}, the first is line {} with {}.",
                  path, key, limit, num_skipped, first_line, first_length);
  }
};

std::vector<int32_t> encode_row(const Row& row, const PromptEncoder& encoder) {
  if (!row.token_ids.empty()) return row.token_ids;
  return row.messages.empty() ? encoder.encode(row.prompt) : encoder.encode(row.messages);
}

SftExample encode_row_to_learn(const Row& row, const DatasetOptions& options, const PromptEncoder& encoder) {
  if (!row.token_ids.empty())
    throw FormatError("prompt_token_ids cannot be learned from. Give prompt and completion, or messages.");
  const auto completion = row.fields.find(options.completion_field);
  const bool completed = completion != row.fields.end() && !completion->is_null();
  if (!row.messages.empty()) {
    std::vector<Message> messages = row.messages;
    if (completed) {
      const auto rest = completion->is_array() ? messages_of(*completion, options.completion_field)
                                               : std::vector<Message>{{"assistant", text_of(*completion)}};
      messages.insert(messages.end(), rest.begin(), rest.end());
    }
    return encoder.encode_example(messages);
  }
  const std::string text = completed ? text_of(*completion) : whole_answer(row.fields, options);
  if (text.empty()) {
    throw FormatError(
        "has neither '{}' nor '{}' to learn from; its fields are {}. Name one with data.completion_field.",
        options.completion_field, options.answer_field, field_names(row.fields));
  }
  return encoder.encode_example(row.prompt, text);
}

std::string hash_of(const std::string& name, const std::vector<Problem>& problems) {
  Xxh3Stream stream;
  const auto add = [&](const std::string& text) {
    stream.update(text.c_str(), text.size() + 1);
  };  // with the 0 that ends it
  add(name);
  for (const Problem& problem : problems) add(problem.prompt), add(problem.answer), add(problem.completion);
  return stream.digest_hex();
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
  dataset.hash_ = for_each_row(path, options, encoder.tokenizer(), [&](Row& row) {
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
    prompt.answer = final_answer(whole_answer(row.fields, options));
    for (const auto& [name, value] : row.fields.items())
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
  dataset.hash_ = for_each_row(path, options, encoder.tokenizer(), [&](Row& row) {
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
