#include <nlohmann/json.hpp>

#include "core/error.h"
#include "model/model_config.h"

namespace temper {
namespace {

using OrderedJson = nlohmann::ordered_json;  // keys keep the order in which they were read

OrderedJson ids_to_json(const std::vector<int64_t>& ids) {
  if (ids.empty()) return nullptr;
  return ids.size() == 1 ? OrderedJson(ids.front()) : OrderedJson(ids);
}

OrderedJson maybe_to_json(const std::optional<int64_t>& id) { return id ? OrderedJson(*id) : OrderedJson(nullptr); }

OrderedJson rope_scaling_to_json(const RopeScaling& scaling) {
  OrderedJson json;
  switch (scaling.kind) {
    case RopeScaling::Kind::kNone:
      return nullptr;
    case RopeScaling::Kind::kLinear:
      return {{"rope_type", "linear"}, {"factor", scaling.factor}};
    case RopeScaling::Kind::kLlama3:
      return {{"rope_type", "llama3"},
              {"factor", scaling.factor},
              {"low_freq_factor", scaling.low_freq_factor},
              {"high_freq_factor", scaling.high_freq_factor},
              {"original_max_position_embeddings", *scaling.original_max_position_embeddings}};
    case RopeScaling::Kind::kYarn:
      json = {{"rope_type", "yarn"},
              {"factor", scaling.factor},
              {"beta_fast", scaling.beta_fast},
              {"beta_slow", scaling.beta_slow},
              {"truncate", scaling.truncate}};
      if (scaling.original_max_position_embeddings)
        json["original_max_position_embeddings"] = *scaling.original_max_position_embeddings;
      if (scaling.attention_factor) json["attention_factor"] = *scaling.attention_factor;
      if (scaling.mscale) json["mscale"] = *scaling.mscale;
      if (scaling.mscale_all_dim) json["mscale_all_dim"] = *scaling.mscale_all_dim;
  }
  return json;
}

// Every field of ours under its name in config.json.
OrderedJson fields_to_json(const ModelConfig& config) {
  OrderedJson json = {{"architectures", OrderedJson::array({architecture_name(config)})},
                      {"model_type", std::string(family_name(config.family))},
                      {"vocab_size", config.vocab_size},
                      {"hidden_size", config.hidden_size},
                      {"intermediate_size", config.intermediate_size},
                      {"num_hidden_layers", config.num_layers},
                      {"num_attention_heads", config.num_heads},
                      {"num_key_value_heads", config.num_kv_heads},
                      {"head_dim", config.head_dim},
                      {"hidden_act", "silu"},
                      {"max_position_embeddings", config.max_position_embeddings},
                      {"rms_norm_eps", config.rms_norm_eps},
                      {"rope_theta", config.rope_theta},
                      {"rope_scaling", rope_scaling_to_json(config.rope_scaling)},
                      {"tie_word_embeddings", config.tie_word_embeddings}};
  if (!config.lm_head) json["id2label"] = {{"0", "LABEL_0"}}, json["label2id"] = {{"LABEL_0", 0}};
  if (config.family != ModelFamily::kQwen2) json["attention_bias"] = config.qkv_bias;
  if (config.family == ModelFamily::kLlama) json["mlp_bias"] = config.mlp_bias;
  return json;
}

std::string dtype_name(c10::ScalarType dtype) {
  switch (dtype) {
    case c10::ScalarType::Float:
      return "float32";
    case c10::ScalarType::BFloat16:
      return "bfloat16";
    case c10::ScalarType::Half:
      return "float16";
    default:
      TEMPER_CHECK(false, "weights are exported in f32, bf16 or f16, not in {}", c10::toString(dtype));
  }
}

}  // namespace

std::string to_config_json(const ModelConfig& config, c10::ScalarType dtype) {
  OrderedJson json;
  const OrderedJson ours = fields_to_json(config);
  if (config.source_json.empty()) {
    json = ours;
    json["bos_token_id"] = maybe_to_json(config.bos_token_id);
    json["eos_token_id"] = ids_to_json(config.eos_token_ids);
    json["pad_token_id"] = maybe_to_json(config.pad_token_id);
  } else {
    json = OrderedJson::parse(config.source_json);
    const OrderedJson before = fields_to_json(parse_model_config(config.source_json, "config.json as loaded"));
    for (const auto& [key, value] : ours.items())
      if (!before.contains(key) || before.at(key) != value) json[key] = value;
    // transformers 4 does not read rope_parameters; both versions read these two
    if (json.contains("rope_parameters")) {
      json["rope_theta"] = ours.at("rope_theta");
      json["rope_scaling"] = ours.at("rope_scaling");
    }
  }
  if (json.contains("dtype")) json["dtype"] = dtype_name(dtype);
  if (json.contains("torch_dtype") || !json.contains("dtype")) json["torch_dtype"] = dtype_name(dtype);
  return json.dump(2) + "\n";
}

std::string to_generation_config_json(const ModelConfig& config) {
  OrderedJson json = OrderedJson::object();
  if (!config.source_generation_json.empty()) {
    json = OrderedJson::parse(config.source_generation_json);
  } else {
    if (config.bos_token_id) json["bos_token_id"] = *config.bos_token_id;
    if (config.pad_token_id) json["pad_token_id"] = *config.pad_token_id;
  }
  if (!config.eos_token_ids.empty()) json["eos_token_id"] = ids_to_json(config.eos_token_ids);
  return json.dump(2) + "\n";
}

}  // namespace temper
