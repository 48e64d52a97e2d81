#include "data/byte_pair_encoder.h"

#include <nlohmann/json.hpp>
#include <queue>

#include "core/error.h"
#include "core/hash.h"
#include "data/utf8.h"

namespace temper {
namespace {

constexpr size_t kMaxCachedPiece = 48;        // bytes; words, not documents
constexpr size_t kMaxCacheEntries = 1 << 17;  // then the cache starts afresh

// Printable Latin-1 characters stand for themselves, the other 68 bytes for the characters from U+0100 on.
struct ByteAlphabet {
  std::array<char32_t, 256> character;
  std::array<int16_t, 0x144> byte;
  ByteAlphabet() {
    byte.fill(-1);
    char32_t next = 0x100;
    for (int b = 0; b < 256; ++b) {
      const bool printable = (b >= 0x21 && b <= 0x7E) || (b >= 0xA1 && b <= 0xAC) || b >= 0xAE;
      character[static_cast<size_t>(b)] = printable ? static_cast<char32_t>(b) : next++;
      byte[character[static_cast<size_t>(b)]] = static_cast<int16_t>(b);
    }
  }
};

const ByteAlphabet& alphabet() {
  static const ByteAlphabet table;
  return table;
}

uint64_t pair_key(int32_t left, int32_t right) {
  return uint64_t{static_cast<uint32_t>(left)} << 32 | static_cast<uint32_t>(right);
}

}  // namespace

std::string bytes_of_token(std::string_view token) {
  std::string bytes;
  for (std::string_view rest = token; !rest.empty();) {
    const auto [character, length] = first_character(rest);
    if (character >= alphabet().byte.size() || alphabet().byte[character] < 0) return std::string(token);
    bytes += static_cast<char>(alphabet().byte[character]);
    rest.remove_prefix(length);
  }
  return bytes;
}

std::string token_of_byte(uint8_t byte) {
  std::string token;
  append_utf8(token, alphabet().character[byte]);
  return token;
}

size_t BytePairEncoder::Hash::operator()(std::string_view text) const { return xxh3_64(text); }

BytePairEncoder::BytePairEncoder(const nlohmann::json& model, const std::string& where) {
  const std::string type = model.value("type", "BPE");
  if (type != "BPE") throw FormatError("{}: model type {} is not supported; byte-level BPE is.", where, type);
  for (const char* key : {"byte_fallback", "fuse_unk"})
    if (model.contains(key) && model[key].is_boolean() && model[key].get<bool>())
      throw FormatError("{}: model.{} = true is not supported: this is no byte-level BPE.", where, key);
  for (const char* key : {"continuing_subword_prefix", "end_of_word_suffix"})
    if (model.contains(key) && model[key].is_string() && !model[key].get<std::string>().empty())
      throw FormatError("{}: model.{} is not supported: this is no byte-level BPE.", where, key);
  ignore_merges_ = model.value("ignore_merges", false);

  std::unordered_map<std::string, int32_t> vocabulary;
  for (const auto& [token, id] : model.at("vocab").items()) vocabulary.emplace(token, id.get<int32_t>());
  for (const auto& [token, id] : vocabulary) tokens_.emplace(bytes_of_token(token), id);
  for (int b = 0; b < 256; ++b) {
    const auto found = vocabulary.find(token_of_byte(static_cast<uint8_t>(b)));
    byte_tokens_[static_cast<size_t>(b)] = found == vocabulary.end() ? -1 : found->second;
  }

  int32_t rank = 0;
  for (const auto& merge : model.at("merges")) {
    std::string left, right;
    if (merge.is_string()) {
      const std::string pair = merge;
      const size_t blank = pair.find(' ');
      if (blank != std::string::npos) left = pair.substr(0, blank), right = pair.substr(blank + 1);
    } else if (merge.is_array() && merge.size() == 2) {
      left = merge[0], right = merge[1];
    }
    const auto l = vocabulary.find(left), r = vocabulary.find(right), both = vocabulary.find(left + right);
    if (l == vocabulary.end() || r == vocabulary.end() || both == vocabulary.end())
      throw FormatError("{}: merge {} ({}) names a token that is not in model.vocab.", where, rank, merge.dump());
    merges_[pair_key(l->second, r->second)] = {rank++, both->second};
  }
}

const BytePairEncoder::Merge* BytePairEncoder::find_merge(int32_t left, int32_t right) const {
  const auto found = merges_.find(pair_key(left, right));
  return found == merges_.end() ? nullptr : &found->second;
}

void BytePairEncoder::encode(std::string_view piece, std::vector<int32_t>& out) {
  if (piece.size() > kMaxCachedPiece) return encode_uncached(piece, out);
  auto found = cache_.find(piece);
  if (found == cache_.end()) {
    std::vector<int32_t> ids;
    encode_uncached(piece, ids);
    if (cache_.size() >= kMaxCacheEntries) cache_.clear();
    found = cache_.emplace(piece, std::move(ids)).first;
  }
  out.insert(out.end(), found->second.begin(), found->second.end());
}

// Symbols are a linked list in an array; candidate merges wait in a queue, lowest rank first, then leftmost. A
// candidate is stale when the two symbols there no longer make its token.
void BytePairEncoder::encode_uncached(std::string_view piece, std::vector<int32_t>& out) const {
  if (ignore_merges_) {
    const auto whole = tokens_.find(piece);
    if (whole != tokens_.end()) {
      out.push_back(whole->second);
      return;
    }
  }
  struct Symbol {
    int32_t token, previous, next;
  };
  struct Candidate {
    int32_t rank, position, token;
    bool operator<(const Candidate& other) const {  // the queue's top is its largest
      return rank != other.rank ? rank > other.rank : position > other.position;
    }
  };
  std::vector<Symbol> symbols;
  symbols.reserve(piece.size());
  for (const char c : piece) {
    const int32_t token = byte_tokens_[static_cast<unsigned char>(c)];
    if (token < 0) continue;
    const auto index = static_cast<int32_t>(symbols.size());
    symbols.push_back({token, index - 1, index + 1});
  }
  if (symbols.empty()) return;
  symbols.back().next = -1;

  std::priority_queue<Candidate> queue;
  const auto merge_at = [&](int32_t left) -> const Merge* {
    if (left < 0) return nullptr;
    const Symbol& symbol = symbols[static_cast<size_t>(left)];
    return symbol.next < 0 ? nullptr : find_merge(symbol.token, symbols[static_cast<size_t>(symbol.next)].token);
  };
  const auto consider = [&](int32_t left) {
    if (const Merge* merge = merge_at(left)) queue.push({merge->rank, left, merge->token});
  };
  for (size_t i = 0; i + 1 < symbols.size(); ++i) consider(static_cast<int32_t>(i));
  while (!queue.empty()) {
    const Candidate top = queue.top();
    queue.pop();
    const Merge* merge = merge_at(top.position);
    if (merge == nullptr || merge->token != top.token) continue;
    Symbol& left = symbols[static_cast<size_t>(top.position)];
    Symbol& right = symbols[static_cast<size_t>(left.next)];
    left.token = top.token;
    right.token = -1;  // merged away
    left.next = right.next;
    if (left.next >= 0) symbols[static_cast<size_t>(left.next)].previous = top.position;
    consider(left.previous);
    consider(top.position);
  }
  for (int32_t i = 0; i >= 0; i = symbols[static_cast<size_t>(i)].next)
    out.push_back(symbols[static_cast<size_t>(i)].token);
}

}  // namespace temper
