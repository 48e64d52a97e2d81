#include "data/tokenizer.h"

#include <algorithm>
#include <map>
#include <mutex>
#include <nlohmann/json.hpp>
#include <set>

#include "core/error.h"
#include "core/files.h"
#include "data/byte_pair_encoder.h"
#include "data/byte_tokenizer.h"
#include "data/json_file.h"
#include "data/pre_tokenizer.h"
#include "data/utf8.h"

namespace temper {
namespace {

using nlohmann::json;

// A token with a text of its own, found in the input before anything else happens to it.
struct AddedToken {
  std::string content;
  int32_t id = 0;
  bool special = false, single_word = false, lstrip = false, rstrip = false, normalized = false;
};

AddedToken added_token(const json& entry, int32_t id) {
  AddedToken token{entry.at("content"), id};
  token.special = entry.value("special", false);
  token.single_word = entry.value("single_word", false);
  token.lstrip = entry.value("lstrip", false);
  token.rstrip = entry.value("rstrip", false);
  token.normalized = entry.value("normalized", !token.special);
  return token;
}

// Added tokens by first byte, longest first.
struct AddedTokenIndex {
  std::array<std::vector<const AddedToken*>, 256> by_first_byte;
  void insert(const AddedToken* token) {
    auto& bucket = by_first_byte[static_cast<unsigned char>(token->content[0])];
    const auto longer = [](const AddedToken* a, const AddedToken* b) { return a->content.size() > b->content.size(); };
    bucket.insert(std::upper_bound(bucket.begin(), bucket.end(), token, longer), token);
  }
  const AddedToken* match(std::string_view text) const {
    for (const AddedToken* token : by_first_byte[static_cast<unsigned char>(text[0])])
      if (text.starts_with(token->content)) return token;
    return nullptr;
  }
};

// The files that save() writes again.
constexpr const char* kFiles[] = {"tokenizer.json", "tokenizer_config.json", "special_tokens_map.json",
                                  "chat_template.jinja"};

// \w of Rust's regex crate: alphabetic characters (the letters in circles too), marks, digits, connectors, joiners.
constexpr const char* kWordCharacter =
    R"([\p{L}\p{M}\p{Nd}\p{Nl}\p{Pc}\x{200c}\x{200d}\x{24b6}-\x{24e9}\x{1f130}-\x{1f149}\x{1f150}-\x{1f169}\x{1f170}-\x{1f189}])";

void read_normal_forms(const json& normalizer, std::vector<NormalForm>& forms, const std::string& where) {
  if (normalizer.is_null()) return;
  static const std::map<std::string, NormalForm> kForms = {
      {"NFC", NormalForm::kNfc}, {"NFD", NormalForm::kNfd}, {"NFKC", NormalForm::kNfkc}, {"NFKD", NormalForm::kNfkd}};
  const std::string type = normalizer.at("type");
  if (type == "Sequence") {
    for (const auto& part : normalizer.at("normalizers")) read_normal_forms(part, forms, where);
  } else if (const auto found = kForms.find(type); found != kForms.end()) {
    forms.push_back(found->second);
  } else {
    throw FormatError("{}: normalizer {} is not supported; supported are NFC, NFD, NFKC, NFKD and their sequences.",
                      where, type);
  }
}

void check_decoder(const json& decoder, const std::string& where) {
  const std::string type = decoder.is_null() ? "null" : decoder.at("type").get<std::string>();
  if (type == "Sequence") {
    for (const auto& part : decoder.at("decoders")) check_decoder(part, where);
  } else if (type != "ByteLevel") {
    throw FormatError("{}: decoder {} is not supported; ByteLevel is.", where, type);
  }
}

// eos_token is "text" or {"content": "text", …}
std::string token_text(const json& config, const char* key) {
  if (!config.is_object() || !config.contains(key)) return "";
  const json& value = config[key];
  if (value.is_string()) return value;
  return value.is_object() ? value.value("content", "") : "";
}

std::vector<int32_t> id_list(const json& config, const char* key) {
  if (!config.is_object() || !config.contains(key) || config[key].is_null()) return {};
  if (config[key].is_array()) return config[key].get<std::vector<int32_t>>();
  return {config[key].get<int32_t>()};
}

}  // namespace

struct Tokenizer::State {
  std::map<std::string, std::string> files;  // name → content, as loaded
  std::vector<AddedToken> added;
  AddedTokenIndex raw_index, normalized_index;
  std::vector<NormalForm> normal_forms;
  std::optional<PreTokenizer> pre_tokenizer;
  std::mutex mutex;
  std::optional<BytePairEncoder> encoder;  // guarded by mutex
  std::optional<Regex> word_end, word_start, blank_end, blank_start;
  std::vector<std::string> token_bytes;         // [vocab_size]
  std::vector<uint8_t> special;                 // [vocab_size]
  std::vector<int32_t> prefix_ids, suffix_ids;  // what add_special puts around
  std::vector<int32_t> eos_ids;
  std::optional<int32_t> bos_id, pad_id;

  void read(const std::string& where, const json& generation_config, const json& model_config);
  void read_post_processor(const json& config, const std::string& where);
  void add_vocabulary_entry(const std::string& token, int32_t id, const std::string& where);
  std::optional<int32_t> added_id(std::string_view content) const;
  using Visit = std::function<void(std::string_view, const AddedToken*)>;
  void cut_at_added_tokens(std::string_view text, const AddedTokenIndex& index, bool parse_special,
                           const Visit& visit) const;
};

void Tokenizer::State::add_vocabulary_entry(const std::string& token, int32_t id, const std::string& where) {
  if (id < 0 || id > 10'000'000) throw FormatError("{}: token '{}' has the impossible id {}.", where, token, id);
  const auto index = static_cast<size_t>(id);
  if (token_bytes.size() <= index) token_bytes.resize(index + 1);
  token_bytes[index] = bytes_of_token(token);
}

std::optional<int32_t> Tokenizer::State::added_id(std::string_view content) const {
  for (const AddedToken& token : added)
    if (token.content == content) return token.id;
  return std::nullopt;
}

void Tokenizer::State::read(const std::string& where, const json& generation_config, const json& model_config) {
  const json root = parse_json(files.at("tokenizer.json"), where);
  const json settings = files.count("tokenizer_config.json")
                            ? parse_json(files.at("tokenizer_config.json"), where + " (tokenizer_config.json)")
                            : json::object();
  const json& model = root.at("model");
  encoder.emplace(model, where);
  for (const auto& [token, id] : model.at("vocab").items()) add_vocabulary_entry(token, id.get<int32_t>(), where);

  for (const auto& entry : root.value("added_tokens", json::array()))
    added.push_back(added_token(entry, entry.at("id")));
  if (settings.contains("added_tokens_decoder")) {
    for (const auto& [id, entry] : settings["added_tokens_decoder"].items())
      if (!added_id(entry.at("content").get<std::string>())) added.push_back(added_token(entry, std::stoi(id)));
  }
  std::erase_if(added, [](const AddedToken& token) { return token.content.empty(); });
  for (const AddedToken& token : added) add_vocabulary_entry(token.content, token.id, where);
  special.resize(token_bytes.size());
  for (const AddedToken& token : added) {
    special[static_cast<size_t>(token.id)] = token.special;
    (token.normalized ? normalized_index : raw_index).insert(&token);
  }

  read_normal_forms(root.value("normalizer", json()), normal_forms, where);
  pre_tokenizer.emplace(root.value("pre_tokenizer", json()), where);
  check_decoder(root.value("decoder", json()), where);
  read_post_processor(root.value("post_processor", json()), where);
  word_end.emplace(format(R"({}\z)", kWordCharacter), false, where);
  word_start.emplace(format(R"(\A{})", kWordCharacter), false, where);
  blank_end.emplace(R"(\s*\z)", false, where);
  blank_start.emplace(R"(\A\s*)", false, where);

  if (const std::string eos = token_text(settings, "eos_token"); !eos.empty())
    if (const auto id = added_id(eos)) eos_ids.push_back(*id);
  auto configured = id_list(generation_config, "eos_token_id");
  if (configured.empty()) configured = id_list(model_config, "eos_token_id");
  for (const int32_t id : configured)
    if (std::find(eos_ids.begin(), eos_ids.end(), id) == eos_ids.end()) eos_ids.push_back(id);
  if (const auto ids = id_list(model_config, "pad_token_id"); !ids.empty()) pad_id = ids[0];
  if (const auto id = added_id(token_text(settings, "pad_token"))) pad_id = id;
  if (const auto ids = id_list(model_config, "bos_token_id"); !ids.empty()) bos_id = ids[0];
  if (const auto id = added_id(token_text(settings, "bos_token"))) bos_id = id;
}

void Tokenizer::State::read_post_processor(const json& config, const std::string& where) {
  if (config.is_null()) return;
  const std::string type = config.at("type");
  if (type == "ByteLevel") return;  // moves offsets, which nobody asks for here
  if (type == "Sequence") {
    for (const auto& part : config.at("processors")) read_post_processor(part, where);
  } else if (type == "TemplateProcessing") {
    bool after_text = false;
    for (const auto& part : config.at("single")) {
      if (part.contains("Sequence")) {
        after_text = true;
        continue;
      }
      const std::string token = part.at("SpecialToken").at("id");
      for (const int32_t id : config.at("special_tokens").at(token).at("ids").get<std::vector<int32_t>>())
        (after_text ? suffix_ids : prefix_ids).push_back(id);
    }
  } else {
    throw FormatError(
        "{}: post_processor {} is not supported; supported are ByteLevel, TemplateProcessing and their sequences.",
        where, type);
  }
}

// The longest added token wins at each place; single_word, lstrip and rstrip as in `tokenizers`.
void Tokenizer::State::cut_at_added_tokens(std::string_view text, const AddedTokenIndex& index, bool parse_special,
                                           const Visit& visit) const {
  size_t done = 0;
  for (size_t at = 0; at < text.size();) {
    const AddedToken* token = index.match(text.substr(at));
    if (token == nullptr) {
      ++at;
      continue;
    }
    size_t begin = at, end = at + token->content.size();
    at = end;
    if (token->special && !parse_special) continue;
    const std::string_view before = text.substr(0, begin), after = text.substr(end);
    if (token->single_word && (word_end->find(before, 0) || word_start->find(after, 0))) continue;
    if (token->lstrip) begin = std::max(done, blank_end->find(before, 0)->first);
    if (token->rstrip) end += blank_start->find(after, 0)->second;
    if (begin > done) visit(text.substr(done, begin - done), nullptr);
    visit(token->content, token);
    done = end;
  }
  if (done < text.size()) visit(text.substr(done), nullptr);
}

Tokenizer::Tokenizer(std::unique_ptr<State> state) : state_(std::move(state)) {}
Tokenizer::Tokenizer(Tokenizer&&) noexcept = default;
Tokenizer& Tokenizer::operator=(Tokenizer&&) noexcept = default;
Tokenizer::~Tokenizer() = default;

Tokenizer Tokenizer::load(const std::string& model_dir) {
  const std::string path = model_dir + "/tokenizer.json";
  if (!file_exists(path)) {
    throw IoError(
        "{}: no such file. A model directory needs the tokenizer.json of Hugging Face's fast tokenizers; for a model "
        "made "
        "from scratch set model.init.tokenizer = \"byte\".",
        path);
  }
  auto state = std::make_unique<State>();
  for (const char* name : kFiles)
    if (file_exists(model_dir + "/" + name)) state->files[name] = read_file(model_dir + "/" + name);
  const auto optional_config = [&](const std::string& name) {
    return file_exists(model_dir + "/" + name) ? read_json_file(model_dir + "/" + name) : json::object();
  };
  try {
    state->read(path, optional_config("generation_config.json"), optional_config("config.json"));
  } catch (const std::logic_error& error) {  // std::stoi
    throw FormatError("{}: broken: {}. Copy the model directory again.", path, error.what());
  } catch (const json::exception& error) {  // a missing key or a value of the wrong type
    throw FormatError("{}: broken, or not a tokenizer.json: {}. Copy the model directory again.", path, error.what());
  }
  return Tokenizer(std::move(state));
}

Tokenizer Tokenizer::bytes() {
  auto state = std::make_unique<State>();
  state->files = byte_tokenizer_files();
  state->read("byte tokenizer", json::object(), json::object());
  return Tokenizer(std::move(state));
}

std::vector<int32_t> Tokenizer::encode(std::string_view text, bool parse_special, bool add_special) const {
  State& state = *state_;
  std::string repaired;
  if (valid_utf8_prefix(text) != text.size()) text = repaired = to_valid_utf8(text);
  std::vector<int32_t> ids;
  if (add_special) ids = state.prefix_ids;
  const std::lock_guard lock(state.mutex);
  std::deque<std::string> storage;
  const auto encode_plain = [&](std::string_view plain, const AddedToken* token) {
    if (token != nullptr) {
      ids.push_back(token->id);
      return;
    }
    storage.clear();
    for (const std::string_view piece : state.pre_tokenizer->split(plain, storage)) state.encoder->encode(piece, ids);
  };
  const auto encode_part = [&](std::string_view part, const AddedToken* token) {
    if (token != nullptr) return encode_plain(part, token);
    std::string normalised;
    for (const NormalForm form : state.normal_forms) part = normalised = normalise(part, form);
    state.cut_at_added_tokens(part, state.normalized_index, parse_special, encode_plain);
  };
  state.cut_at_added_tokens(text, state.raw_index, parse_special, encode_part);
  if (add_special) ids.insert(ids.end(), state.suffix_ids.begin(), state.suffix_ids.end());
  return ids;
}

std::string Tokenizer::decode(std::span<const int32_t> ids, bool skip_special_tokens) const {
  std::string bytes;
  for (const int32_t id : ids)
    if (!(skip_special_tokens && is_special(id))) bytes += token_bytes(id);
  return valid_utf8_prefix(bytes) == bytes.size() ? bytes : to_valid_utf8(bytes);
}

const std::string& Tokenizer::token_bytes(int32_t id) const {
  static const std::string nothing;
  return id >= 0 && id < vocab_size() ? state_->token_bytes[static_cast<size_t>(id)] : nothing;
}

bool Tokenizer::is_special(int32_t id) const {
  return id >= 0 && id < vocab_size() && state_->special[static_cast<size_t>(id)] != 0;
}

std::optional<int32_t> Tokenizer::token_id(std::string_view token) const { return state_->added_id(token); }
int32_t Tokenizer::vocab_size() const { return static_cast<int32_t>(state_->token_bytes.size()); }
const std::vector<int32_t>& Tokenizer::eos_ids() const { return state_->eos_ids; }
int32_t Tokenizer::pad_id() const {
  return state_->pad_id.value_or(state_->eos_ids.empty() ? 0 : state_->eos_ids.front());
}
std::optional<int32_t> Tokenizer::bos_id() const { return state_->bos_id; }

void Tokenizer::save(const std::string& dir) const {
  for (const auto& [name, content] : state_->files) write_file_atomically(dir + "/" + name, content);
}

}  // namespace temper
