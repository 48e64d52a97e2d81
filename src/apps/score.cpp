// temper score: log-probabilities of given token ids or texts. Several lines share a forward pass; the head's product
// runs in blocks of the vocabulary (model/token_logprobs.h), so [tokens x vocabulary] is never stored.
#include <ATen/ATen.h>

#include <nlohmann/json.hpp>
#include <string_view>

#include "apps/command_line.h"
#include "apps/commands.h"
#include "apps/inference_model.h"
#include "core/error.h"
#include "core/files.h"
#include "model/attention.h"
#include "model/token_logprobs.h"
#include "observe/progress.h"

namespace temper {
namespace {

constexpr int64_t kTokensPerForward = 4096;

struct ScoreItem {
  std::vector<int32_t> token_ids;  // [T]
  std::vector<float> logprobs;     // [T - 1] of all but the first
  bool is_text = false;
};

ScoreItem parse_line(std::string_view text, const std::string& where, const InferenceModel& loaded) {
  const ModelConfig& config = loaded.model->config();
  const nlohmann::json json = nlohmann::json::parse(text, nullptr, /*allow_exceptions=*/false);
  if (!json.is_object() || json.contains("token_ids") == json.contains("text"))
    throw FormatError("{}: expected a JSON object with either token_ids or text, such as {}.", where,
                      R"({"token_ids": [1, 2, 3]})");
  ScoreItem item;
  if (json.contains("text")) {
    if (!json["text"].is_string()) throw FormatError("{}: text must be a string.", where);
    item.is_text = true;
    item.token_ids = loaded.tokenizer.encode(json["text"].get<std::string>(), true, /*add_special=*/true);
  } else {
    if (!json["token_ids"].is_array()) throw FormatError("{}: token_ids must be a list of integers.", where);
    for (const auto& value : json["token_ids"]) {
      const int64_t id = value.is_number_integer() ? value.get<int64_t>() : -1;
      if (id < 0 || id >= config.vocab_size)
        throw FormatError("{}: token_ids[{}] is {}: this model has ids from 0 to {}.", where, item.token_ids.size(),
                          value.dump(), config.vocab_size - 1);
      item.token_ids.push_back(static_cast<int32_t>(id));
    }
  }
  if (static_cast<int64_t>(item.token_ids.size()) > config.max_position_embeddings)
    throw ConfigError("{}: {} tokens exceed the model's context of {}. Split the line.", where, item.token_ids.size(),
                      config.max_position_embeddings);
  return item;
}

std::vector<ScoreItem> read_items(const std::string& path, const InferenceModel& loaded) {
  const std::string bytes = read_file(path);
  std::vector<ScoreItem> items;
  std::string_view rest = bytes;
  for (int64_t number = 1; !rest.empty(); ++number) {
    const size_t end = std::min(rest.find('\n'), rest.size());
    items.push_back(parse_line(rest.substr(0, end), format("{}:{}", path, number), loaded));
    rest.remove_prefix(std::min(end + 1, rest.size()));
  }
  if (items.empty()) throw FormatError("{}: is empty. It needs one JSON object a line.", path);
  return items;
}

// One forward pass over items [begin, end), packed.
void score(const Transformer& model, std::vector<ScoreItem>& items, size_t begin, size_t end) {
  at::NoGradGuard no_grad;
  const ModelConfig& config = model.config();
  std::vector<int64_t> ids, positions, rows, targets;  // rows: whose next token is a target
  std::vector<AttentionSegment> segments;
  for (size_t i = begin; i < end; ++i) {
    const std::vector<int32_t>& tokens = items[i].token_ids;
    const auto first = static_cast<int64_t>(ids.size());
    for (size_t t = 0; t < tokens.size(); ++t) {
      ids.push_back(tokens[t]);
      positions.push_back(static_cast<int64_t>(t));
      if (t == 0) continue;
      rows.push_back(first + static_cast<int64_t>(t) - 1);
      targets.push_back(tokens[t]);
    }
    if (!tokens.empty()) segments.push_back({.begin = first, .end = static_cast<int64_t>(ids.size())});
  }
  if (rows.empty()) return;
  const at::Tensor hidden = model.hidden_states(  // [T, hidden]
      at::tensor(ids, at::kLong), at::tensor(positions, at::kLong), [&](int64_t, const at::Tensor& qkv) {
        return packed_attention_qkv(qkv, config.num_heads, config.num_kv_heads, segments, model.attention_scale());
      });
  const at::Tensor logprobs = token_logprobs(hidden.index_select(0, at::tensor(rows, at::kLong).to(hidden.device())),
                                             at::tensor(targets, at::kLong), model.head(), /*temperature=*/1.0)
                                  .logprobs.cpu()
                                  .contiguous();  // [rows]
  const float* next = logprobs.const_data_ptr<float>();
  for (size_t i = begin; i < end; ++i) {
    if (items[i].token_ids.empty()) continue;
    const size_t count = items[i].token_ids.size() - 1;
    items[i].logprobs.assign(next, next + count);
    next += count;
  }
}

std::string output_line(const ScoreItem& item) {
  nlohmann::ordered_json out;
  if (item.is_text) out["token_ids"] = item.token_ids;
  auto& list = out["logprobs"] = nlohmann::ordered_json::array();
  if (!item.token_ids.empty()) list.push_back(nullptr);
  for (const float logprob : item.logprobs) list.push_back(logprob);
  return out.dump() + "\n";
}

}  // namespace

int run_score(int argc, char** argv) {
  CommandLine line("score", "Writes the log-probability of every token, given the tokens before it, at temperature 1.",
                   "--model DIR --input F.jsonl --out G.jsonl");
  line.add_option("model", "DIR", "model directory (config.json, safetensors, tokenizer.json)");
  line.add_option("input", "FILE", "JSON lines with token_ids or text");
  line.add_option("out", "FILE", "JSON lines with logprobs (and token_ids of texts), in the order of the input");
  declare_compute_type(line);
  if (!line.parse(argc, argv)) return 0;
  const ComputeType type = compute_type_of(line);
  const std::string input_path = line.text("input"), out_path = line.text("out");
  check_can_write(out_path);
  const InferenceModel loaded = load_inference_model(line.text("model"), type);
  std::vector<ScoreItem> items = read_items(input_path, loaded);

  Progress progress;
  progress.begin_stage("score", static_cast<int64_t>(items.size()));
  std::string out;
  for (size_t begin = 0; begin < items.size();) {
    size_t end = begin;
    int64_t num_tokens = 0;
    do {
      num_tokens += static_cast<int64_t>(items[end].token_ids.size());
      ++end;
    } while (end < items.size() && num_tokens + static_cast<int64_t>(items[end].token_ids.size()) <= kTokensPerForward);
    score(*loaded.model, items, begin, end);
    for (; begin < end; ++begin) out += output_line(items[begin]);
    MetricRecord record;
    record.stage = "score";
    record.step = static_cast<int64_t>(end);
    progress.update(record);
  }
  progress.end_stage();
  write_file_atomically(out_path, out);
  return 0;
}

}  // namespace temper
