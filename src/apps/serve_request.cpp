#include "apps/serve_request.h"

#include <algorithm>
#include <limits>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/nearest_name.h"
#include "rollout/sampler.h"

namespace temper {
namespace {

using json = nlohmann::ordered_json;

constexpr size_t kMaxStopStrings = 16, kMaxStopBytes = 1024;

template <class... Args>
[[noreturn]] void refuse(const std::string& param, std::string_view text, const Args&... args) {
  throw ApiError(400, "", param, format(text, args...));
}

// A value as messages show it.
std::string shown(const json& value) {
  constexpr size_t kLength = 60;
  std::string text = value.dump(-1, ' ', true);
  return text.size() <= kLength ? text : text.substr(0, kLength) + "...";
}

// The fields of the body. A null field is one that is not given.
class Fields {
 public:
  explicit Fields(const json& body) : body_(body) {}

  const json* find(const std::string& name) {
    known_.push_back(name);
    const auto found = body_.find(name);
    return found == body_.end() || found->is_null() ? nullptr : &*found;
  }

  std::optional<int64_t> integer(const std::string& name, int64_t low, int64_t high) {
    const json* value = find(name);
    if (value == nullptr) return std::nullopt;
    if (!value->is_number_integer()) refuse(name, "{} is {}: give an integer.", name, shown(*value));
    const bool too_large = value->is_number_unsigned() && value->get<uint64_t>() > static_cast<uint64_t>(high);
    if (too_large || value->get<int64_t>() < low || value->get<int64_t>() > high)
      refuse(name, "{} is {}: give an integer from {} to {}.", name, shown(*value), low, high);
    return value->get<int64_t>();
  }

  double number(const std::string& name, double otherwise) {
    const json* value = find(name);
    if (value == nullptr) return otherwise;
    if (!value->is_number()) refuse(name, "{} is {}: give a number.", name, shown(*value));
    return value->get<double>();
  }

  bool flag(const std::string& name) {
    const json* value = find(name);
    if (value == nullptr) return false;
    if (!value->is_boolean()) refuse(name, "{} is {}: give true or false.", name, shown(*value));
    return value->get<bool>();
  }

  // What this server does not do: the value that asks for nothing is fine, any other is refused.
  void only(const std::string& name, const json& nothing) {
    const json* value = find(name);
    if (value != nullptr && *value != nothing)
      refuse(name, "{} is {}: this server supports {} alone. Leave it out.", name, shown(*value), shown(nothing));
  }

  // Fields that change nothing in the answer.
  void pass(std::initializer_list<const char*> names) {
    for (const char* name : names) find(name);
  }

  void refuse_unknown() const {
    for (const auto& [name, value] : body_.items())
      if (std::find(known_.begin(), known_.end(), name) == known_.end())
        refuse(name.substr(0, 60), "unknown field {}: the nearest is {}.", shown(name), nearest_name(name, known_));
  }

 private:
  const json& body_;
  std::vector<std::string> known_;
};

std::vector<std::string> stop_strings(Fields& fields) {
  const json* value = fields.find("stop");
  if (value == nullptr) return {};
  const json list = value->is_array() ? *value : json::array({*value});
  if (list.size() > kMaxStopStrings)
    refuse("stop", "stop has {} texts: give at most {}.", list.size(), kMaxStopStrings);
  std::vector<std::string> stop;
  for (const json& text : list) {
    if (!text.is_string()) refuse("stop", "stop has {}: give a text or a list of texts.", shown(text));
    stop.push_back(text);
    if (stop.back().size() > kMaxStopBytes)
      refuse("stop", "a stop string has {} bytes: give at most {}.", stop.back().size(), kMaxStopBytes);
  }
  return stop;
}

std::string content_text(const json& content, const std::string& where) {
  if (content.is_string()) return content;
  if (!content.is_array())
    refuse("messages", "{}.content is {}: give a text, or a list of {\"type\": \"text\", \"text\": ...}.", where,
           shown(content));
  std::vector<std::string> parts;
  for (const json& part : content) {
    if (!part.is_object() || !part.contains("type") || part["type"] != "text" || !part.contains("text") ||
        !part["text"].is_string())
      refuse("messages",
             "{}.content has the part {}: this server reads text parts alone, {\"type\": \"text\", \"text\": ...}.",
             where, shown(part));
    parts.push_back(part["text"]);
  }
  return join(parts, "\n");
}

std::vector<Message> chat_messages(Fields& fields) {
  const json* list = fields.find("messages");
  if (list == nullptr || !list->is_array() || list->empty())
    refuse("messages", "messages is {}: give a list of {\"role\": ..., \"content\": ...}, at least one.",
           list == nullptr ? "missing" : shown(*list));
  std::vector<Message> messages;
  for (size_t i = 0; i < list->size(); ++i) {
    const json& entry = (*list)[i];
    const std::string where = format("messages[{}]", i);
    if (!entry.is_object())
      refuse("messages", "{} is {}: give {\"role\": ..., \"content\": ...}.", where, shown(entry));
    for (const auto& [name, value] : entry.items())
      if (name != "role" && name != "content" && name != "name" && !value.is_null() &&
          !(value.is_array() && value.empty()))
        refuse("messages", "{} has the field {}: this server reads role and content.", where, shown(name));
    if (!entry.contains("role") || !entry["role"].is_string())
      refuse("messages", "{} has no role: give system, user or assistant.", where);
    std::string role = entry["role"];
    if (role == "developer") role = "system";  // OpenAI's newer word
    if (role != "system" && role != "user" && role != "assistant")
      refuse("messages", "{} has the role {}: this server knows system, user and assistant.", where,
             shown(entry["role"]));
    messages.push_back({role, content_text(entry.value("content", json()), where)});
  }
  return messages;
}

std::vector<int32_t> id_list(const json& list, const std::string& where) {
  std::vector<int32_t> ids;
  ids.reserve(list.size());
  for (const json& id : list) {
    if (!id.is_number_integer() || (id.is_number_unsigned() && id.get<uint64_t>() > INT32_MAX) ||
        id.get<int64_t>() < 0 || id.get<int64_t>() > INT32_MAX)
      refuse("prompt", "{} has {} among token ids: give integers of at least 0.", where, shown(id));
    ids.push_back(id.get<int32_t>());
  }
  return ids;
}

// A text, token ids, or a list of these.
std::vector<std::vector<int32_t>> completion_prompts(Fields& fields, const ServedModel& model) {
  const json* value = fields.find("prompt");
  const auto encode = [&](const json& prompt, const std::string& where) {
    if (prompt.is_string()) return model.raw->encode(prompt.get_ref<const std::string&>());
    if (!prompt.is_array()) refuse("prompt", "{} is {}: give a text or a list of token ids.", where, shown(prompt));
    return id_list(prompt, where);
  };
  if (value == nullptr || (value->is_array() && value->empty()))
    refuse("prompt", "prompt is {}: give a text, a list of token ids, or a list of these.",
           value == nullptr ? "missing" : "an empty list");
  if (!value->is_array() || value->front().is_number()) return {encode(*value, "prompt")};
  if (static_cast<int64_t>(value->size()) > model.max_completions)
    refuse("prompt", "prompt has {} entries: this server takes up to {} at once.", value->size(),
           model.max_completions);
  std::vector<std::vector<int32_t>> prompts;
  for (size_t i = 0; i < value->size(); ++i) prompts.push_back(encode((*value)[i], format("prompt[{}]", i)));
  return prompts;
}

void check_model(Fields& fields, const ServedModel& model) {
  const json* name = fields.find("model");
  if (name == nullptr || *name == model.name) return;
  throw ApiError(404, "model_not_found", "model",
                 format("model is {}: this server has {}. GET /v1/models names it.", shown(*name), model.name));
}

// logprobs of the drawn tokens; those of alternatives are not computed.
bool wants_logprobs(ApiKind kind, Fields& fields) {
  if (kind == ApiKind::kChat) {
    fields.only("top_logprobs", 0);
    return fields.flag("logprobs");
  }
  const json* value = fields.find("logprobs");
  if (value == nullptr) return false;
  if (*value == 0) return true;
  refuse("logprobs",
         "logprobs is {}: this server gives the log-probabilities of the drawn tokens, not of alternatives. Give 0.",
         shown(*value));
}

std::optional<int64_t> max_tokens(ApiKind kind, Fields& fields) {
  constexpr int64_t kMost = std::numeric_limits<int32_t>::max();
  const auto older = fields.integer("max_tokens", 1, kMost);
  if (kind == ApiKind::kCompletion) return older;
  const auto newer = fields.integer("max_completion_tokens", 1, kMost);
  if (older && newer && *older != *newer)
    refuse("max_tokens", "max_tokens is {} and max_completion_tokens is {}: give one of them.", *older, *newer);
  return newer ? newer : older;
}

// The limit of the completions' length, which all prompts must leave room for. Not given: 16 tokens of a completion (as
// OpenAI), the rest of the context in a chat.
int64_t fit_context(ApiKind kind, const ServedModel& model, const ApiRequest& request, std::optional<int64_t> asked) {
  const std::string field = kind == ApiKind::kChat ? "messages" : "prompt";
  int64_t longest = 0;
  for (const std::vector<int32_t>& prompt : request.prompts) {
    if (prompt.empty()) refuse(field, "a prompt has no tokens: give at least one.");
    longest = std::max(longest, static_cast<int64_t>(prompt.size()));
  }
  const int64_t room = model.context - longest;
  if (room < 1)
    throw ApiError(400, "context_length_exceeded", field,
                   format("This model's maximum context length is {} tokens, the prompt has {} and one must fit behind "
                          "it. Shorten it.",
                          model.context, longest));
  if (asked && *asked > room)
    throw ApiError(
        400, "context_length_exceeded", field,
        format("This model's maximum context length is {} tokens, you ask for {}: {} of the prompt and {} of "
               "the completion. Shorten one of them.",
               model.context, longest + *asked, longest, *asked));
  return asked ? *asked : kind == ApiKind::kChat ? room : std::min<int64_t>(16, room);
}

// What OpenAI and vLLM have and this server has not, each with the value that asks for nothing.
void refuse_what_is_not_here(ApiKind kind, Fields& fields, int32_t num_completions) {
  for (const char* name : {"frequency_penalty", "presence_penalty", "min_tokens"}) fields.only(name, 0);
  for (const char* name : {"repetition_penalty", "length_penalty"}) fields.only(name, 1);
  for (const char* name : {"include_stop_str_in_output", "use_beam_search"}) fields.only(name, false);
  for (const char* name : {"skip_special_tokens", "spaces_between_special_tokens"}) fields.only(name, true);
  for (const char* name : {"stop_token_ids", "bad_words"}) fields.only(name, json::array());
  for (const char* name : {"prompt_logprobs", "truncate_prompt_tokens", "allowed_token_ids"})
    fields.only(name, nullptr);
  fields.only("logit_bias", json::object());
  fields.only("response_format", {{"type", "text"}});
  fields.only("best_of", num_completions);
  fields.pass({"user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key"});
  if (kind == ApiKind::kCompletion) {
    fields.only("echo", false);
    fields.only("suffix", "");
    return;
  }
  for (const char* name : {"tools", "functions"}) fields.only(name, json::array());
  for (const char* name : {"tool_choice", "function_call"}) fields.only(name, "none");
  for (const char* name : {"audio", "prediction", "reasoning_effort", "verbosity", "web_search_options"})
    fields.only(name, nullptr);
  fields.only("modalities", {"text"});
  fields.only("add_generation_prompt", true);
  fields.only("continue_final_message", false);
  fields.pass({"parallel_tool_calls"});
}

json parse_body(std::string_view body) {
  json parsed;
  try {
    parsed = json::parse(body);
  } catch (const json::exception& error) {
    refuse("", "the body is not JSON: {}", error.what());
  }
  if (!parsed.is_object()) refuse("", "the body is {}: give a JSON object.", shown(parsed));
  return parsed;
}

}  // namespace

ApiRequest parse_api_request(ApiKind kind, std::string_view body, const ServedModel& model, uint64_t fresh_seed) {
  const json parsed = parse_body(body);
  Fields fields(parsed);
  check_model(fields, model);
  ApiRequest request;
  request.kind = kind;
  request.num_completions = static_cast<int32_t>(fields.integer("n", 1, model.max_completions).value_or(1));
  request.logprobs = wants_logprobs(kind, fields);
  request.stream = fields.flag("stream");
  if (const json* options = fields.find("stream_options")) {
    if (!options->is_object()) refuse("stream_options", "stream_options is {}: give an object.", shown(*options));
    if (!request.stream) refuse("stream_options", "stream_options needs \"stream\": true.");
    Fields inner(*options);
    request.include_usage = inner.flag("include_usage");
    inner.only("continuous_usage_stats", false);
    inner.only("include_obfuscation", false);
    inner.refuse_unknown();
  }

  SamplingParams& sampling = request.sampling;
  sampling.temperature = fields.number("temperature", 1);
  sampling.top_p = fields.number("top_p", 1);
  sampling.min_p = fields.number("min_p", 0);
  sampling.top_k = static_cast<int32_t>(std::max<int64_t>(0, fields.integer("top_k", -1, INT32_MAX).value_or(0)));
  sampling.ignore_eos = fields.flag("ignore_eos");
  sampling.stop = stop_strings(fields);
  const auto seed = fields.integer("seed", INT64_MIN, INT64_MAX);
  sampling.seed = seed ? static_cast<uint64_t>(*seed) : fresh_seed;
  check_sampling(sampling, "request");

  const std::optional<int64_t> asked = max_tokens(kind, fields);
  refuse_what_is_not_here(kind, fields, request.num_completions);
  if (kind == ApiKind::kChat) {
    const std::vector<Message> messages = chat_messages(fields);
    fields.refuse_unknown();
    if (model.chat == nullptr)
      refuse("messages", "{} has no chat template, so it cannot chat. Use POST /v1/completions.", model.name);
    request.prompts = {model.chat->encode(messages)};
  } else {
    request.prompts = completion_prompts(fields, model);
    fields.refuse_unknown();
  }
  const auto num_prompts = static_cast<int64_t>(request.prompts.size());
  if (num_prompts * request.num_completions > model.max_completions)
    refuse("n", "{} prompts with n = {} are {} completions: this server takes up to {} at once.", num_prompts,
           request.num_completions, num_prompts * request.num_completions, model.max_completions);
  sampling.max_new_tokens = static_cast<int32_t>(fit_context(kind, model, request, asked));
  return request;
}

}  // namespace temper
