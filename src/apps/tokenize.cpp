// temper tokenize: a line of text in, {"token_ids": […]} out; with --decode the other way round, {"text": "…"} out.
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "core/error.h"
#include "data/tokenizer.h"

namespace temper {
namespace {

// {"token_ids": […]} or the list alone.
std::vector<int32_t> parse_ids(const std::string& line, int64_t line_number, int32_t vocab_size) {
  const auto json = nlohmann::json::parse(line, nullptr, false);
  const auto& list = json.is_object() && json.contains("token_ids") ? json.at("token_ids") : json;
  if (!list.is_array())
    throw FormatError("standard input, line {}: no token ids. Write {} on each line, as temper tokenize prints them.",
                      line_number, "{\"token_ids\": [1, 2, 3]}");
  std::vector<int32_t> ids;
  for (const auto& item : list) {
    const int64_t id = item.is_number_integer() ? item.get<int64_t>() : -1;
    if (id < 0 || id >= vocab_size)
      throw FormatError("standard input, line {}: token_ids[{}] is {}. This tokenizer has ids from 0 to {}.",
                        line_number, ids.size(), item.dump(), vocab_size - 1);
    ids.push_back(static_cast<int32_t>(id));
  }
  return ids;
}

}  // namespace

int run_tokenize(int argc, char** argv) {
  CommandLine line("tokenize",
                   "Lines on standard input become token ids, one JSON line each; --decode turns them back.",
                   "--model DIR [--decode] < INPUT");
  line.add_option("model", "DIR", "model directory with tokenizer.json, or \"byte\" for the byte tokenizer");
  line.add_flag("decode", "read JSON lines with token_ids, print JSON lines with text");
  line.add_flag("no-special-tokens",
                "do not add the tokens that the tokenizer puts around a text, as <|begin_of_text|>");
  line.add_flag("keep-special-tokens", "with --decode: special tokens stay in the text");
  if (!line.parse(argc, argv)) return 0;

  const std::string model = line.text("model");
  const Tokenizer tokenizer = model == "byte" ? Tokenizer::bytes() : Tokenizer::load(model);
  std::string text;
  for (int64_t number = 1; std::getline(std::cin, text); ++number) {
    nlohmann::json out;
    if (line.flag("decode"))
      out["text"] =
          tokenizer.decode(parse_ids(text, number, tokenizer.vocab_size()), !line.flag("keep-special-tokens"));
    else
      out["token_ids"] = tokenizer.encode(text, true, !line.flag("no-special-tokens"));
    std::cout << out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
  }
  return 0;
}

}  // namespace temper
