// Cuts text into the pieces that BPE works on, as the "pre_tokenizer" of a tokenizer.json says. Supported: Sequence,
// Digits, Split and, last, ByteLevel. Immutable and thread-safe.
#pragma once
#include <deque>
#include <nlohmann/json_fwd.hpp>
#include <string>
#include <string_view>
#include <vector>

#include "data/regex.h"

namespace temper {

class PreTokenizer {
 public:
  // FormatError for kinds that are not supported; `where` is named in it.
  PreTokenizer(const nlohmann::json& config, const std::string& where);
  // Pieces are views of `text`, or of strings added to `storage` where a blank was put before a piece. REQUIRES: valid
  // UTF-8.
  std::vector<std::string_view> split(std::string_view text, std::deque<std::string>& storage) const;

 private:
  enum class Behaviour { kIsolated, kRemoved, kContiguous, kMergedWithPrevious, kMergedWithNext };
  struct Step {
    bool add_prefix_space = false;
    std::optional<Regex> regex;
    Behaviour behaviour = Behaviour::kIsolated;
    bool invert = false;  // what lies between the matches counts as the match
  };
  void add(const nlohmann::json& config, const std::string& where);
  static void apply(const Step& step, std::string_view piece, std::vector<std::string_view>& out);
  std::vector<Step> steps_;
  bool bytes_ = false;  // ByteLevel was seen
};

}  // namespace temper
