#include "data/jsonl_rows.h"

#include <algorithm>
#include <cctype>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "core/log.h"
#include "data/json_file.h"

namespace temper {

using nlohmann::json;

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

std::string fill_template(const std::string& text, const JsonlRow& row) {
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
    if (row.fields->contains(name)) {
      out += text_of((*row.fields)[name]);
    } else if (name == "prompt") {
      out += row.prompt;
    } else {
      throw ConfigError(
          "data.prompt_template asks for {{}}, but the line's fields are {}. Name one of them, or write {{{}}} for "
          "braces in the text.",
          name, field_names(*row.fields), name);
    }
    i = end + 1;
  }
  return out;
}

void read_prompt(JsonlRow& row, const DatasetOptions& options, const Tokenizer& tokenizer) {
  const json& fields = *row.fields;
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

std::string for_each_row(const std::string& path, const std::function<void(JsonlRow&)>& visit) {
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
    const json fields = parse_json(text, where);
    JsonlRow row;
    row.line = line;
    row.fields = &fields;
    try {
      if (!fields.is_object())
        throw FormatError("is no JSON object. A line is such as {\"prompt\": \"...\", \"answer\": \"...\"}.");
      visit(row);
    } catch (const FormatError& error) {
      throw FormatError("{}: {}", where, error.what());
    } catch (const ConfigError& error) {
      throw ConfigError("{}: {}", where, error.what());
    }
  }
  return xxh3_128_hex(content);
}

bool has_field(const json& fields, const std::string& name) {
  const auto found = fields.find(name);
  return found != fields.end() && !found->is_null();
}

bool has_prompt(const json& fields, const DatasetOptions& options) {
  return fields.contains(options.prompt_field) || fields.contains("messages") || fields.contains("prompt_token_ids");
}

bool LengthLimit::skips(int64_t line, int64_t length) {
  if (limit <= 0 || length <= limit) return false;
  if (num_skipped++ == 0) first_line = line + 1, first_length = length;
  return true;
}

void LengthLimit::warn() const {
  if (num_skipped > 0)
    log_warning("{}: lines left out because they are longer than {} = {} tokens: {}, the first is line {} with {}.",
                path, key, limit, num_skipped, first_line, first_length);
}

}  // namespace temper
