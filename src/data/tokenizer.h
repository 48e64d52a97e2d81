// Text to token ids and back, identical to Hugging Face `tokenizers` for byte-level BPE (SmolLM2, Llama 3, Qwen
// families), and a byte tokenizer for models made from scratch. Read from and written to a model directory. Thread-safe
// after construction (encode keeps a cache of pieces under a lock). Movable; whoever loads it owns it.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class Tokenizer {
 public:
  // Reads tokenizer.json, and where present tokenizer_config.json, special_tokens_map.json, generation_config.json,
  // config.json. IoError: no tokenizer.json. FormatError: broken, or of a kind that is not supported, which it names.
  static Tokenizer load(const std::string& model_dir);
  // Ids 0 to 255 are the bytes; then <|endoftext|>, <|im_start|>, <|im_end|>, <|pad|>. Ends with <|endoftext|>.
  static Tokenizer bytes();

  Tokenizer(Tokenizer&&) noexcept;
  Tokenizer& operator=(Tokenizer&&) noexcept;
  ~Tokenizer();

  // parse_special: special tokens written in the text become their ids. add_special: as the tokenizer's post-processor
  // says, e.g. <|begin_of_text|> first (what `tokenizer(text)` does in transformers; not wanted after a chat template).
  std::vector<int32_t> encode(std::string_view text, bool parse_special = true, bool add_special = false) const;
  // Bytes that are no UTF-8 become U+FFFD, as in `tokenizers`.
  std::string decode(std::span<const int32_t> ids, bool skip_special_tokens = true) const;
  // The raw bytes of one token (a special token's text), possibly a part of a character: for streaming and stop
  // strings. Empty for ids that the vocabulary leaves out.
  const std::string& token_bytes(int32_t id) const;

  bool is_special(int32_t id) const;
  std::optional<int32_t> token_id(std::string_view token) const;  // of an added token such as <|im_end|>
  int32_t vocab_size() const;                                     // highest id + 1
  // Tokens that end a completion: tokenizer_config's eos_token first, then those of generation_config (or config). May
  // be empty.
  const std::vector<int32_t>& eos_ids() const;
  int32_t pad_id() const;
  std::optional<int32_t> bos_id() const;

  // Writes tokenizer.json, tokenizer_config.json, special_tokens_map.json (and chat_template.jinja, if there was one)
  // into an existing directory: byte for byte those that were loaded.
  void save(const std::string& dir) const;

 private:
  struct State;
  explicit Tokenizer(std::unique_ptr<State> state);
  std::unique_ptr<State> state_;
};

}  // namespace temper
