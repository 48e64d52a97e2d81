// The text of a completion that grows token by token, for streaming: never a part of a character, never the beginning
// of what turns out to be a stop string. All pieces together are Completion::text.
#pragma once
#include <string>
#include <string_view>
#include <vector>

namespace temper {

class TextStream {
 public:
  explicit TextStream(std::vector<std::string> stop) : stop_(std::move(stop)) {}

  // The bytes of one more token (of tokens that are text) → what may be shown now.
  std::string append(std::string_view bytes);
  // No more tokens come: what was held back.
  std::string finish();

 private:
  std::string release(bool all);

  std::vector<std::string> stop_;
  std::string begun_;  // a character that is not complete
  std::string held_;   // whole characters in which a stop string may begin
  bool stopped_ = false;
};

}  // namespace temper
