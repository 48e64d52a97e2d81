// A JSONL data set line by line, before tokenisation: its fields, its prompt, what is left out for its length. What the
// data sets share; for this folder's .cpp files. Whatever goes wrong with a line is thrown without its place:
// for_each_row adds file and line.
#pragma once
#include <cstdint>
#include <functional>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "core/hash.h"
#include "data/chat_template.h"
#include "data/prompt_dataset.h"

namespace temper {

struct JsonlRow {
  int64_t line = 0;  // from 0
  const nlohmann::json* fields = nullptr;
  // The prompt, one of the three; filled by read_prompt.
  std::string prompt;
  std::vector<Message> messages;
  std::vector<int32_t> token_ids;
  std::string text;  // the user's words
};

// Calls `visit` with each line's row. Returns the content's hash.
std::string for_each_row(const std::string& path, const std::function<void(JsonlRow&)>& visit);

// Fills the row's prompt from options.prompt_field, "messages" or "prompt_token_ids".
void read_prompt(JsonlRow& row, const DatasetOptions& options, const Tokenizer& tokenizer);
// Whether the line has one of the three.
bool has_prompt(const nlohmann::json& fields, const DatasetOptions& options);
// Puts the fields of the line into the holes of data.prompt_template; {prompt} is row.prompt where no field is called
// so. Braces around anything but a name stay.
std::string fill_template(const std::string& text, const JsonlRow& row);

bool has_field(const nlohmann::json& fields, const std::string& name);  // and it is not null
std::string text_of(const nlohmann::json& value);                       // a text as it is, anything else as JSON
std::vector<Message> messages_of(const nlohmann::json& value, const std::string& name);
std::string field_names(const nlohmann::json& fields);

// Counts what is left out for its length and warns once.
struct LengthLimit {
  const std::string& path;
  const char* key;
  int64_t limit;  // tokens; 0: none
  int64_t num_skipped = 0, first_line = 0, first_length = 0;
  bool skips(int64_t line, int64_t length);
  void warn() const;
};

// Identity of generated data: the texts, each with the 0 that ends it.
class TextHash {
 public:
  void add(const std::string& text) { stream_.update(text.c_str(), text.size() + 1); }
  std::string digest_hex() const { return stream_.digest_hex(); }

 private:
  Xxh3Stream stream_;
};

}  // namespace temper
