#include "data/pre_tokenizer.h"

#include <nlohmann/json.hpp>

#include "core/error.h"

namespace temper {
namespace {

// GPT-2's pattern, which ByteLevel brings along.
const std::string kGpt2Pattern = R"('s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+)";

size_t character_length(std::string_view text, size_t at) {
  size_t end = at + 1;
  while (end < text.size() && (static_cast<unsigned char>(text[end]) & 0xC0) == 0x80) ++end;
  return end - at;
}

}  // namespace

PreTokenizer::PreTokenizer(const nlohmann::json& config, const std::string& where) {
  if (!config.is_null()) add(config, where);
  if (!bytes_) {
    throw FormatError(
        "{}: pre_tokenizer has no ByteLevel part. Supported are byte-level BPE tokenizers (GPT-2, SmolLM2, Llama 3, "
        "Qwen); SentencePiece and WordPiece are not.",
        where);
  }
}

void PreTokenizer::add(const nlohmann::json& config, const std::string& where) {
  const std::string type = config.at("type");
  if (bytes_)
    throw FormatError("{}: pre_tokenizer {} comes after ByteLevel; ByteLevel must be the last part.", where, type);
  if (type == "Sequence") {
    for (const auto& part : config.at("pretokenizers")) add(part, where);
  } else if (type == "Digits") {
    Step step;
    step.regex.emplace(config.value("individual_digits", false) ? R"(\p{N})" : R"(\p{N}+)", false, where);
    steps_.push_back(std::move(step));
  } else if (type == "Split") {
    static const std::vector<std::string> kBehaviours = {"Isolated", "Removed", "Contiguous", "MergedWithPrevious",
                                                         "MergedWithNext"};
    const std::string behaviour = config.at("behavior");
    const auto known = std::find(kBehaviours.begin(), kBehaviours.end(), behaviour);
    if (known == kBehaviours.end())
      throw FormatError("{}: pre_tokenizer Split has behavior '{}'; known are {}.", where, behaviour,
                        join(kBehaviours));
    const auto& pattern = config.at("pattern");
    Step step;
    step.regex.emplace(
        pattern.contains("Regex") ? pattern.at("Regex").get<std::string>() : pattern.at("String").get<std::string>(),
        !pattern.contains("Regex"), where);
    step.behaviour = static_cast<Behaviour>(known - kBehaviours.begin());
    step.invert = config.value("invert", false);
    steps_.push_back(std::move(step));
  } else if (type == "ByteLevel") {
    Step step;
    step.add_prefix_space = config.value("add_prefix_space", true);
    if (config.value("use_regex", true)) step.regex.emplace(kGpt2Pattern, false, where);
    if (step.add_prefix_space || step.regex) steps_.push_back(std::move(step));
    bytes_ = true;
  } else {
    throw FormatError("{}: pre_tokenizer {} is not supported; supported are Sequence, Digits, Split and ByteLevel.",
                      where, type);
  }
}

std::vector<std::string_view> PreTokenizer::split(std::string_view text, std::deque<std::string>& storage) const {
  std::vector<std::string_view> pieces, next;
  if (!text.empty()) pieces.push_back(text);
  for (const Step& step : steps_) {
    next.clear();
    for (std::string_view piece : pieces) {
      if (step.add_prefix_space && piece.front() != ' ') piece = storage.emplace_back(1, ' ').append(piece);
      apply(step, piece, next);
    }
    pieces.swap(next);
  }
  return pieces;
}

void PreTokenizer::apply(const Step& step, std::string_view piece, std::vector<std::string_view>& out) {
  if (!step.regex) {
    out.push_back(piece);
    return;
  }
  const size_t first = out.size();
  bool merge_next = false;   // the part before was a match that belongs to what follows
  bool after_match = false;  // the part before was a match
  const auto add_part = [&](size_t begin, size_t end, bool matched) {
    if (begin == end) return;
    const std::string_view part = piece.substr(begin, end - begin);
    matched = matched != step.invert;
    bool append = false;  // to the part before
    switch (step.behaviour) {
      case Behaviour::kIsolated:
        break;
      case Behaviour::kRemoved:
        if (matched) return;
        break;
      case Behaviour::kContiguous:
        append = matched == after_match;
        break;
      case Behaviour::kMergedWithPrevious:
        append = matched && !after_match;
        break;
      case Behaviour::kMergedWithNext:
        append = merge_next && !matched;
        break;
    }
    after_match = merge_next = matched;
    if (append && out.size() > first)
      out.back() = std::string_view(out.back().data(), out.back().size() + part.size());
    else
      out.push_back(part);
  };
  size_t done = 0, from = 0;
  while (from <= piece.size()) {
    const auto match = step.regex->find(piece, from);
    if (!match) break;
    add_part(done, match->first, false);
    add_part(match->first, match->second, true);
    done = match->second;
    from = match->second > match->first ? match->second : match->second + character_length(piece, match->second);
  }
  add_part(done, piece.size(), false);
}

}  // namespace temper
