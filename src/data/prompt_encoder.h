// From a user's words to the tokens that the model sees: prompt → chat template (or none) → tokenizer; and for SFT the
// tokens of the completion after it, with the mask of those to learn. Used by data sets, generate and serve. Keeps
// references: the tokenizer and the template must outlive it. Thread-safe.
#pragma once
#include <cstdint>
#include <string_view>
#include <vector>

#include "data/chat_template.h"
#include "data/tokenizer.h"

namespace temper {

struct SftExample {
  int64_t line = 0;                // index in the data set
  std::vector<int32_t> token_ids;  // [T] prompt, completion, end of turn
  std::vector<uint8_t> loss_mask;  // [T] 1: to be learned (the completion and its end)
  int64_t prompt_length = 0;       // tokens before the completion
};

class PromptEncoder {
 public:
  // chat = nullptr: raw text, as for models without a template and with --raw.
  PromptEncoder(const Tokenizer& tokenizer, const ChatTemplate* chat) : tokenizer_(&tokenizer), chat_(chat) {}

  std::vector<int32_t> encode(std::string_view prompt) const;  // as one message of the user
  std::vector<int32_t> encode(const std::vector<Message>& messages) const;
  SftExample encode_example(std::string_view prompt, std::string_view completion) const;
  // The last message must be the assistant's: it is what is learned, the messages before it are its prompt.
  SftExample encode_example(const std::vector<Message>& messages) const;
  // Language modelling: all of the text and its end are learned but for the first token, which nothing precedes. Never
  // through the chat template. FormatError where nothing remains to learn.
  SftExample encode_text(std::string_view text) const;

  const Tokenizer& tokenizer() const { return *tokenizer_; }
  bool has_chat_template() const { return chat_ != nullptr; }

 private:
  SftExample join(std::vector<int32_t> prompt, std::vector<int32_t> completion) const;
  const Tokenizer* tokenizer_;
  const ChatTemplate* chat_;
};

}  // namespace temper
