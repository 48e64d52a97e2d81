// What a decoder-only transformer is made of, as config.json of a Hugging Face directory states it, for the three
// families that share one layer code: Llama, Qwen2 and Qwen3, with the head of a language model (…ForCausalLM), or that
// of a critic or reward model (…ForSequenceClassification with one label). A plain value; read once, then passed by
// const reference to whoever builds, runs or exports a model. Keys that we have no use for are kept in `source_json`,
// so that an export carries them on. What a file states and this program cannot run is a FormatError that names the
// file, the key, the value and a way out.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

enum class ModelFamily { kLlama, kQwen2, kQwen3 };

// "llama", "qwen2", "qwen3": model_type in config.json, family in [model] init.
std::string_view family_name(ModelFamily family);
std::optional<ModelFamily> parse_family(std::string_view name);

// How rotary frequencies are stretched beyond the pre-training context; fields as in config.json's rope_scaling.
struct RopeScaling {
  enum class Kind { kNone, kLinear, kLlama3, kYarn };
  Kind kind = Kind::kNone;
  double factor = 1.0;
  std::optional<int64_t> original_max_position_embeddings;  // llama3 (required), yarn
  double low_freq_factor = 1.0;                             // llama3
  double high_freq_factor = 4.0;                            // llama3
  double beta_fast = 32.0;                                  // yarn
  double beta_slow = 1.0;                                   // yarn
  bool truncate = true;                                     // yarn: round the correction range to whole dimensions
  std::optional<double> attention_factor;                   // yarn; default: from factor, mscale and mscale_all_dim
  std::optional<double> mscale;                             // yarn
  std::optional<double> mscale_all_dim;                     // yarn

  bool operator==(const RopeScaling&) const = default;
};

struct ModelConfig {
  ModelFamily family = ModelFamily::kLlama;
  int64_t hidden_size = 0;
  int64_t intermediate_size = 0;
  int64_t num_layers = 0;
  int64_t num_heads = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t vocab_size = 0;
  int64_t max_position_embeddings = 0;
  double rms_norm_eps = 1e-6;
  double rope_theta = 10000.0;
  RopeScaling rope_scaling;
  bool tie_word_embeddings = false;
  bool qkv_bias = false;  // q_proj, k_proj and v_proj have biases
  bool o_bias = false;
  bool mlp_bias = false;               // gate_proj, up_proj and down_proj have biases
  bool qk_norm = false;                // RMSNorm of each head's q and k, before the rotation
  bool lm_head = true;                 // gives next-token logits
  bool value_head = false;             // gives one number a token: score.weight [1, hidden_size]
  std::vector<int64_t> eos_token_ids;  // a completion ends at any of them: generation_config.json's, else config.json's
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
  std::string source_json;             // config.json as read; empty for a new model
  std::string source_generation_json;  // generation_config.json as read; may be empty

  int64_t q_size() const { return num_heads * head_dim; }
  int64_t kv_size() const { return num_kv_heads * head_dim; }
};

// As transformers 4.57 reads it, with the defaults of the family (and rope_parameters as transformers 5 writes them).
// `origin` names the text in messages.
ModelConfig parse_model_config(const std::string& json_text, const std::string& origin);
// Reads DIR/config.json and, where there is one, DIR/generation_config.json (for its eos_token_id).
ModelConfig load_model_config(const std::string& directory);

// config.json and generation_config.json that transformers loads: the text that was read, with the fields that changed.
std::string to_config_json(const ModelConfig& config, c10::ScalarType dtype);
std::string to_generation_config_json(const ModelConfig& config);

std::string architecture_name(const ModelConfig& config);  // LlamaForCausalLM, LlamaForSequenceClassification, …
int64_t num_parameters(const ModelConfig& config);         // a tied embedding counts once

}  // namespace temper
