#include "data/prompt_encoder.h"

#include <algorithm>

#include "core/error.h"

namespace temper {

std::vector<int32_t> PromptEncoder::encode(std::string_view prompt) const {
  if (chat_ == nullptr) return tokenizer_->encode(prompt, true, true);
  return encode(std::vector<Message>{{"user", std::string(prompt)}});
}

std::vector<int32_t> PromptEncoder::encode(const std::vector<Message>& messages) const {
  if (chat_ == nullptr) {
    throw ConfigError(
        "a prompt given as messages needs a chat template, and this model has none (or --raw was asked for). Give "
        "{\"prompt\": \"...\"} instead.");
  }
  return tokenizer_->encode(chat_->render(messages, true));
}

SftExample PromptEncoder::encode_example(std::string_view prompt, std::string_view completion) const {
  if (chat_ != nullptr) return encode_example({{"user", std::string(prompt)}, {"assistant", std::string(completion)}});
  // Apart, as in generation: no token reaches across the border.
  std::vector<int32_t> learned = tokenizer_->encode(completion);
  if (!tokenizer_->eos_ids().empty()) learned.push_back(tokenizer_->eos_ids().front());
  return join(encode(prompt), std::move(learned));
}

SftExample PromptEncoder::encode_example(const std::vector<Message>& messages) const {
  if (messages.size() < 2 || messages.back().role != "assistant")
    throw FormatError("messages to learn from must end with an assistant's answer to a question.");
  const std::vector<Message> question(messages.begin(), messages.end() - 1);
  std::vector<int32_t> prompt = encode(question);  // refuses where there is no template
  // What the template writes after the generation prompt is the completion (Qwen3 puts an empty <think> block before
  // it).
  const std::string opened = chat_->render(question, true), whole = chat_->render(messages, false);
  const auto common = static_cast<size_t>(
      std::mismatch(opened.begin(), opened.end(), whole.begin(), whole.end()).first - opened.begin());
  TEMPER_CHECK(common == opened.size(),
               "the chat template renders the question differently before an answer: '{}' and '{}'", opened, whole);
  std::string_view completion = std::string_view(whole).substr(opened.size());
  completion = completion.substr(0, completion.rfind(chat_->turn_end()) + chat_->turn_end().size());
  return join(std::move(prompt), tokenizer_->encode(completion));
}

SftExample PromptEncoder::encode_text(std::string_view text) const {
  std::vector<int32_t> tokens = tokenizer_->encode(text, true, true);
  const std::vector<int32_t>& ends = tokenizer_->eos_ids();
  if (text.empty()) tokens.clear();
  const bool ended = !tokens.empty() && std::find(ends.begin(), ends.end(), tokens.back()) != ends.end();
  if (!tokens.empty() && !ends.empty() && !ended) tokens.push_back(ends.front());
  if (tokens.size() < 2)
    throw FormatError("the text has {} tokens: nothing follows the first one that could be learned. Remove the line.",
                      tokens.size());
  std::vector<int32_t> learned(tokens.begin() + 1, tokens.end());
  tokens.resize(1);
  return join(std::move(tokens), std::move(learned));
}

SftExample PromptEncoder::join(std::vector<int32_t> prompt, std::vector<int32_t> completion) const {
  SftExample example;
  example.prompt_length = static_cast<int64_t>(prompt.size());
  example.loss_mask.assign(prompt.size(), 0);
  example.loss_mask.resize(prompt.size() + completion.size(), 1);
  example.token_ids = std::move(prompt);
  example.token_ids.insert(example.token_ids.end(), completion.begin(), completion.end());
  return example;
}

}  // namespace temper
