#include "data/byte_tokenizer.h"

#include <nlohmann/json.hpp>

#include "data/byte_pair_encoder.h"

namespace temper {

std::map<std::string, std::string> byte_tokenizer_files() {
  using json = nlohmann::ordered_json;
  json vocabulary = json::object();
  for (int byte = 0; byte < 256; ++byte) vocabulary[token_of_byte(static_cast<uint8_t>(byte))] = byte;
  json added = json::array(), decoder_entries = json::object();
  int id = 256;
  for (const char* content : {"<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|pad|>"}) {
    json token = {{"content", content}, {"lstrip", false},      {"normalized", false},
                  {"rstrip", false},    {"single_word", false}, {"special", true}};
    decoder_entries[std::to_string(id)] = token;
    token["id"] = id++;
    added.push_back(token);
  }
  const json byte_level = {
      {"type", "ByteLevel"}, {"add_prefix_space", false}, {"trim_offsets", true}, {"use_regex", false}};
  const json tokenizer = {{"version", "1.0"},
                          {"truncation", nullptr},
                          {"padding", nullptr},
                          {"added_tokens", added},
                          {"normalizer", nullptr},
                          {"pre_tokenizer", byte_level},
                          {"post_processor", nullptr},
                          {"decoder", byte_level},
                          {"model",
                           {{"type", "BPE"},
                            {"dropout", nullptr},
                            {"unk_token", nullptr},
                            {"continuing_subword_prefix", nullptr},
                            {"end_of_word_suffix", nullptr},
                            {"fuse_unk", false},
                            {"byte_fallback", false},
                            {"ignore_merges", false},
                            {"vocab", vocabulary},
                            {"merges", json::array()}}}};
  const json names = {{"eos_token", "<|endoftext|>"},
                      {"pad_token", "<|pad|>"},
                      {"additional_special_tokens", {"<|im_start|>", "<|im_end|>"}}};
  json settings = names;
  settings["added_tokens_decoder"] = decoder_entries;
  settings["clean_up_tokenization_spaces"] = false;
  settings["model_input_names"] = {"input_ids", "attention_mask"};
  settings["tokenizer_class"] = "PreTrainedTokenizerFast";
  return {{"tokenizer.json", tokenizer.dump(1) + "\n"},
          {"tokenizer_config.json", settings.dump(1) + "\n"},
          {"special_tokens_map.json", names.dump(1) + "\n"}};
}

}  // namespace temper
