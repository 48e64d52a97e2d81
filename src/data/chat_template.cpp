#include "data/chat_template.h"

#include <algorithm>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "data/json_file.h"
#include "data/utf8.h"

namespace temper {
namespace {

constexpr std::string_view kSupported = "ChatML (SmolLM2, Qwen2, Qwen2.5), Qwen3, Llama 3, Llama 3.1 and Llama 3.2";

bool contains(std::string_view text, std::string_view part) { return text.find(part) != std::string_view::npos; }

// Jinja string literals write a line break as \n; some templates have a real one.
std::string unescape(std::string_view literal) {
  std::string out;
  for (size_t i = 0; i < literal.size(); ++i) {
    if (literal[i] != '\\' || i + 1 == literal.size()) {
      out += literal[i];
      continue;
    }
    const char next = literal[++i];
    out += next == 'n' ? '\n' : next == 't' ? '\t' : next;
  }
  return out;
}

// The text of a literal "<|im_start|>system\n…<|im_end|>" inside the template, if there is one.
std::string default_system_message(std::string_view jinja) {
  constexpr std::string_view kOpen = "<|im_start|>system";
  for (size_t at = jinja.find(kOpen); at != std::string_view::npos; at = jinja.find(kOpen, at + 1)) {
    std::string_view rest = jinja.substr(at + kOpen.size());
    if (rest.starts_with("\\n"))
      rest.remove_prefix(2);
    else if (rest.starts_with("\n"))
      rest.remove_prefix(1);
    else
      continue;
    const std::string_view text = rest.substr(0, rest.find("<|im_end|>"));
    const bool literal = text.size() < rest.size() && !contains(text, "{{") && !contains(text, "}}") &&
                         !contains(text, "' +") && !contains(text, "\" +");
    if (literal) return unescape(text);
  }
  return "";
}

std::string_view strip_newlines(std::string_view text, bool left, bool right) {
  while (left && text.starts_with('\n')) text.remove_prefix(1);
  while (right && text.ends_with('\n')) text.remove_suffix(1);
  return text;
}

// Qwen3 keeps the thoughts of the last answer only: {thoughts, what follows them}.
std::pair<std::string_view, std::string_view> split_thoughts(std::string_view content) {
  constexpr std::string_view kOpen = "<think>", kClose = "</think>";
  const size_t first = content.find(kClose), last = content.rfind(kClose);
  if (first == std::string_view::npos) return {"", content};
  std::string_view thoughts = strip_newlines(content.substr(0, first), false, true);
  if (const size_t open = thoughts.rfind(kOpen); open != std::string_view::npos)
    thoughts.remove_prefix(open + kOpen.size());
  return {strip_newlines(thoughts, true, false), strip_newlines(content.substr(last + kClose.size()), true, false)};
}

// Messages after the last real question belong to the answer in progress.
size_t last_query_index(const std::vector<Message>& messages) {
  for (size_t i = messages.size(); i-- > 0;) {
    const std::string_view content = messages[i].content;
    if (messages[i].role == "user" &&
        !(content.starts_with("<tool_response>") && content.ends_with("</tool_response>")))
      return i;
  }
  return messages.size() - 1;
}

std::string config_text(const nlohmann::json& value) {
  if (value.is_string()) return value;
  return value.is_object() ? value.value("content", "") : "";
}

}  // namespace

std::optional<ChatTemplate> ChatTemplate::load(const std::string& model_dir) {
  const std::string config_path = model_dir + "/tokenizer_config.json", jinja_path = model_dir + "/chat_template.jinja";
  const nlohmann::json config = file_exists(config_path) ? read_json_file(config_path) : nlohmann::json::object();
  if (!config.is_object()) throw FormatError("{}: holds no JSON object. Copy the model directory again.", config_path);
  std::string bos = config.contains("bos_token") ? config_text(config["bos_token"]) : "";
  if (file_exists(jinja_path)) return recognise(read_file(jinja_path), jinja_path, std::move(bos));
  if (!config.contains("chat_template") || config["chat_template"].is_null()) return std::nullopt;
  const auto& entry = config["chat_template"];
  if (entry.is_string()) return recognise(entry.get<std::string>(), config_path, std::move(bos));
  if (entry.is_array())  // several, by name
    for (const auto& named : entry)
      if (named.is_object() && named.value("name", "") == "default")
        return recognise(named.value("template", ""), config_path, std::move(bos));
  throw FormatError("{}: chat_template is neither a text nor a list with an entry named \"default\".", config_path);
}

ChatTemplate ChatTemplate::recognise(std::string_view jinja, const std::string& where, std::string bos_token) {
  ChatTemplate result;
  const auto has_none_of = [&](std::initializer_list<std::string_view> foreign) {
    return std::none_of(foreign.begin(), foreign.end(), [&](std::string_view part) { return contains(jinja, part); });
  };
  const bool chatml =
      contains(jinja, "<|im_start|>") && contains(jinja, "<|im_end|>") &&
      has_none_of({"<|im_sep|>", "macro ", "trim", "strftime_now", "reasoning_mode", "<|vision_start|>"});
  const bool thinks = contains(jinja, "</think>");
  if (chatml && thinks && contains(jinja, "last_query_index") && contains(jinja, "reasoning_content")) {
    result.family_ = Family::kQwen3;
    if (contains(jinja, R"(<|im_start|>assistant\n<think>\n)")) result.generation_suffix_ = "<think>\n";
  } else if (chatml && !thinks) {
    result.default_system_ = default_system_message(jinja);
  } else if (contains(jinja, "<|start_header_id|>") && contains(jinja, "<|eot_id|>") && contains(jinja, "trim")) {
    result.family_ = Family::kLlama3;
    result.dated_system_ = contains(jinja, "Cutting Knowledge Date");
    if (contains(jinja, "bos_token")) result.bos_token_ = std::move(bos_token);
  } else {
    throw ConfigError(
        "{}: this chat template is not one of those that are supported: {}. Use --raw (prompts as they are), or write "
        "the model's markup into the prompts and set data.prompt_template.",
        where, kSupported);
  }
  return result;
}

std::string ChatTemplate::render(const std::vector<Message>& messages, bool add_generation_prompt) const {
  TEMPER_CHECK(!messages.empty(), "a chat without messages");
  for (const Message& message : messages)
    if (message.role != "system" && message.role != "user" && message.role != "assistant")
      throw FormatError("a message has the role '{}'; supported are system, user and assistant.", message.role);
  return family_ == Family::kLlama3 ? render_llama3(messages, add_generation_prompt)
                                    : render_chatml(messages, add_generation_prompt);
}

std::string ChatTemplate::render_chatml(const std::vector<Message>& messages, bool add_generation_prompt) const {
  std::string out;
  const auto turn = [&](std::string_view role, std::string_view content) {
    ((((out += "<|im_start|>") += role) += '\n') += content) += "<|im_end|>\n";
  };
  if (!default_system_.empty() && messages[0].role != "system") turn("system", default_system_);
  const size_t last_query = last_query_index(messages);
  for (size_t i = 0; i < messages.size(); ++i) {
    const auto& [role, content] = messages[i];
    if (family_ != Family::kQwen3 || role != "assistant") {
      turn(role, content);
      continue;
    }
    const auto [thoughts, answer] = split_thoughts(content);
    const bool last = i + 1 == messages.size();
    if (i > last_query && (last || !thoughts.empty())) {
      turn(role, format("<think>\n{}\n</think>\n\n{}", strip_newlines(thoughts, true, true),
                        strip_newlines(answer, true, false)));
    } else {
      turn(role, answer);
    }
  }
  if (add_generation_prompt) (out += "<|im_start|>assistant\n") += generation_suffix_;
  return out;
}

std::string ChatTemplate::render_llama3(const std::vector<Message>& messages, bool add_generation_prompt) const {
  std::string out = bos_token_;
  const auto open = [&](std::string_view role) { ((out += "<|start_header_id|>") += role) += "<|end_header_id|>\n\n"; };
  size_t first = 0;
  if (dated_system_) {
    open("system");
    out += "Cutting Knowledge Date: December 2023\nToday Date: 26 Jul 2024\n\n";
    if (messages[0].role == "system") out += strip(messages[first++].content);
    out += "<|eot_id|>";
  }
  for (; first < messages.size(); ++first) {
    open(messages[first].role);
    (out += strip(messages[first].content)) += "<|eot_id|>";
  }
  if (add_generation_prompt) open("assistant");
  return out;
}

std::string_view ChatTemplate::turn_end() const { return family_ == Family::kLlama3 ? "<|eot_id|>" : "<|im_end|>"; }

}  // namespace temper
