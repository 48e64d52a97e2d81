// The chat template of a model: messages to the text that the model was trained on. Templates are recognised, not
// interpreted: ChatML with or without a default system message (SmolLM2, Qwen2, Qwen2.5), Qwen3, Llama 3, 3.1 and 3.2.
// Immutable, thread-safe. Llama 3.2's template writes today's date; here it is always that template's fallback, 26 Jul
// 2024: a run repeats tomorrow.
#pragma once
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

struct Message {
  std::string role;  // system, user, assistant
  std::string content;
  bool operator==(const Message&) const = default;
};

class ChatTemplate {
 public:
  // From chat_template.jinja or tokenizer_config.json in a model directory; nothing if the model has none.
  // ConfigError for a template that is not recognised.
  static std::optional<ChatTemplate> load(const std::string& model_dir);
  // From the text of a Jinja template. `where` is named in errors; `bos_token` is what Llama templates start with.
  static ChatTemplate recognise(std::string_view jinja, const std::string& where,
                                std::string bos_token = "<|begin_of_text|>");

  // As transformers' apply_chat_template(messages, add_generation_prompt=…, tokenize=False) with its defaults (Qwen3:
  // thinking allowed). FormatError for roles other than system, user and assistant. REQUIRES: a message.
  std::string render(const std::vector<Message>& messages, bool add_generation_prompt) const;
  // What ends an assistant's turn: <|im_end|> or <|eot_id|>.
  std::string_view turn_end() const;

 private:
  enum class Family { kChatMl, kQwen3, kLlama3 };
  std::string render_chatml(const std::vector<Message>& messages, bool add_generation_prompt) const;
  std::string render_llama3(const std::vector<Message>& messages, bool add_generation_prompt) const;

  Family family_ = Family::kChatMl;
  std::string default_system_;     // ChatML: the system message where messages bring none; empty: none
  std::string generation_suffix_;  // Qwen3 thinking models open the <think> block in the generation prompt
  std::string bos_token_;          // Llama 3: comes first; empty where the template does not ask for it
  bool dated_system_ = false;      // Llama 3.1 and later: a system header with dates, always
};

}  // namespace temper
