#include "model/model_config.h"

#include <filesystem>
#include <limits>
#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"
#include "model/parameters.h"

namespace temper {
namespace {

using Json = nlohmann::json;

constexpr std::string_view kSupported =
    "Supported are LlamaForCausalLM (model_type llama), Qwen2ForCausalLM (qwen2) and Qwen3ForCausalLM (qwen3)";

struct FamilyFacts {
  ModelFamily family;
  std::string_view name;
  std::string_view architecture;
};
constexpr FamilyFacts kFamilies[] = {{ModelFamily::kLlama, "llama", "LlamaForCausalLM"},
                                     {ModelFamily::kQwen2, "qwen2", "Qwen2ForCausalLM"},
                                     {ModelFamily::kQwen3, "qwen3", "Qwen3ForCausalLM"}};

const FamilyFacts& facts_of(ModelFamily family) {
  for (const FamilyFacts& facts : kFamilies)
    if (facts.family == family) return facts;
  TEMPER_CHECK(false, "family {} has no facts", static_cast<int>(family));
}

Json parse_object(const std::string& text, const std::string& origin) {
  Json json;
  try {
    json = Json::parse(text);
  } catch (const nlohmann::json::exception& error) {
    throw FormatError("{}: is not JSON ({}). Fetch the file again.", origin, error.what());
  }
  if (!json.is_object())
    throw FormatError("{}: holds {}, a JSON object is needed. Fetch the file again.", origin, json.type_name());
  return json;
}

// Typed access to one JSON object. A key that is absent or null has its default, as in transformers.
class Fields {
 public:
  Fields(const Json& json, std::string origin) : json_(json), origin_(std::move(origin)) {}

  bool has(const char* key) const { return json_.contains(key) && !json_.at(key).is_null(); }
  const Json& at(const char* key) const { return json_.at(key); }
  const std::string& origin() const { return origin_; }

  int64_t integer(const char* key) const {
    if (!has(key)) throw FormatError("{}: key {} is missing. Add it, as the model's authors state it.", origin_, key);
    const Json& value = json_.at(key);
    if (!value.is_number_integer()) wrong_type(key, "an integer");
    return value.get<int64_t>();
  }
  int64_t integer(const char* key, int64_t otherwise) const { return has(key) ? integer(key) : otherwise; }
  // A size: 1 to 2^31 - 1, so that products of two of them fit.
  int64_t size(const char* key) const {
    const int64_t value = integer(key);
    if (value < 1 || value > std::numeric_limits<int32_t>::max())
      throw FormatError("{}: {} is {}, it must lie between 1 and 2147483647. Correct it.", origin_, key, value);
    return value;
  }
  int64_t size(const char* key, int64_t otherwise) const { return has(key) ? size(key) : otherwise; }
  double number(const char* key) const {
    if (!has(key)) throw FormatError("{}: key {} is missing. Add it, as the model's authors state it.", origin_, key);
    if (!json_.at(key).is_number()) wrong_type(key, "a number");
    return json_.at(key).get<double>();
  }
  double number(const char* key, double otherwise) const { return has(key) ? number(key) : otherwise; }
  std::optional<double> maybe_number(const char* key) const {
    return has(key) ? std::optional<double>(number(key)) : std::nullopt;
  }
  bool boolean(const char* key, bool otherwise) const {
    if (!has(key)) return otherwise;
    if (!json_.at(key).is_boolean()) wrong_type(key, "true or false");
    return json_.at(key).get<bool>();
  }
  std::string text(const char* key, std::string_view otherwise) const {
    if (!has(key)) return std::string(otherwise);
    if (!json_.at(key).is_string()) wrong_type(key, "a text");
    return json_.at(key).get<std::string>();
  }
  // One id or a list of ids.
  std::vector<int64_t> ids(const char* key) const {
    if (!has(key)) return {};
    const Json& value = json_.at(key);
    std::vector<int64_t> ids;
    for (const Json& id : value.is_array() ? value : Json::array({value})) {
      if (!id.is_number_integer()) wrong_type(key, "an integer or a list of integers");
      ids.push_back(id.get<int64_t>());
    }
    return ids;
  }
  std::optional<int64_t> maybe_id(const char* key) const {
    const std::vector<int64_t> all = ids(key);
    return all.empty() ? std::nullopt : std::optional<int64_t>(all.front());
  }
  [[noreturn]] void wrong_type(const char* key, std::string_view needed) const {
    throw FormatError("{}: {} is {}, {} is needed. Correct it.", origin_, key, json_.at(key).dump(), needed);
  }

 private:
  const Json& json_;
  std::string origin_;
};

// transformers keeps the number of labels as the size of id2label, and leaves it out where it is 2.
void check_one_label(const Fields& fields) {
  const int64_t labels = fields.has("id2label") && fields.at("id2label").is_object()
                             ? static_cast<int64_t>(fields.at("id2label").size())
                             : fields.integer("num_labels", 2);
  if (labels != 1)
    throw FormatError(
        "{}: the classifier has {} labels (id2label), a reward model or critic has 1. Choose a model that gives one "
        "number.",
        fields.origin(), labels);
}

constexpr std::string_view kClassifier = "ForSequenceClassification";

// LlamaForCausalLM → LlamaForSequenceClassification.
std::string classifier_name(std::string_view architecture) {
  return std::string(architecture.substr(0, architecture.find("For"))) + std::string(kClassifier);
}

void parse_architecture(const Fields& fields, ModelConfig& config) {
  const std::string model_type = fields.text("model_type", "");
  std::vector<std::string> architectures;
  if (fields.has("architectures")) {
    if (!fields.at("architectures").is_array()) fields.wrong_type("architectures", "a list of texts");
    for (const Json& name : fields.at("architectures"))
      architectures.push_back(name.is_string() ? name.get<std::string>() : name.dump());
  }
  for (const FamilyFacts& facts : kFamilies) {
    const bool type_fits = model_type.empty() ? !architectures.empty() : model_type == facts.name;
    const bool causal = architectures.empty() || architectures.front() == facts.architecture;
    const bool classifier = !causal && architectures.front() == classifier_name(facts.architecture);
    if (!type_fits || !(causal || classifier)) continue;
    config.family = facts.family;
    config.lm_head = causal;
    config.value_head = classifier;
    if (classifier) check_one_label(fields);
    return;
  }
  throw FormatError("{}: architectures [{}] with model_type '{}' is not supported. {}: choose such a model.",
                    fields.origin(), join(architectures), model_type, kSupported);
}

// What the files of these families may ask for and our layers do not compute.
void refuse_unsupported(const Fields& fields) {
  const std::string activation = fields.text("hidden_act", "silu");
  if (activation != "silu" && activation != "swish")
    throw FormatError("{}: hidden_act is '{}', supported is silu. Choose a model with silu.", fields.origin(),
                      activation);
  bool sliding = fields.boolean("use_sliding_window", false);
  if (fields.has("layer_types"))
    for (const Json& type : fields.at("layer_types")) sliding = sliding || type != "full_attention";
  if (sliding)
    throw FormatError(
        "{}: use_sliding_window (or layer_types) asks for sliding-window attention, supported is full attention. Set "
        "use_sliding_window to false (and remove layer_types) if sequences stay within the window, or choose another "
        "model.",
        fields.origin());
  if (fields.has("quantization_config"))
    throw FormatError(
        "{}: quantization_config says that the weights are quantised; supported are F32, BF16 and F16 weights. "
        "Take the unquantised model.",
        fields.origin());
  const double rotary_share = fields.number("partial_rotary_factor", 1.0);
  if (rotary_share != 1.0)
    throw FormatError("{}: partial_rotary_factor is {}, supported is 1. Choose another model.", fields.origin(),
                      rotary_share);
}

RopeScaling parse_rope_scaling(const Fields& rope) {
  RopeScaling scaling;
  const std::string type = rope.has("type") ? rope.text("type", "") : rope.text("rope_type", "default");
  if (type == "default") return scaling;
  if (type == "linear") {
    scaling.kind = RopeScaling::Kind::kLinear;
  } else if (type == "llama3") {
    scaling.kind = RopeScaling::Kind::kLlama3;
  } else if (type == "yarn") {
    scaling.kind = RopeScaling::Kind::kYarn;
  } else {
    throw FormatError("{}: rope_type is '{}', supported are default, linear, llama3 and yarn. Choose another model.",
                      rope.origin(), type);
  }
  scaling.factor = rope.number("factor");
  if (!(scaling.factor >= 1.0))
    throw FormatError("{}: factor is {}, it must be at least 1. Correct it.", rope.origin(), scaling.factor);
  if (scaling.kind == RopeScaling::Kind::kLlama3) {
    scaling.low_freq_factor = rope.number("low_freq_factor");
    scaling.high_freq_factor = rope.number("high_freq_factor");
    scaling.original_max_position_embeddings = rope.size("original_max_position_embeddings");
    if (!(scaling.low_freq_factor > 0 && scaling.high_freq_factor > scaling.low_freq_factor))
      throw FormatError("{}: low_freq_factor is {} and high_freq_factor {}, needed is 0 < low < high. Correct them.",
                        rope.origin(), scaling.low_freq_factor, scaling.high_freq_factor);
  }
  if (scaling.kind == RopeScaling::Kind::kYarn) {
    if (rope.has("original_max_position_embeddings"))
      scaling.original_max_position_embeddings = rope.size("original_max_position_embeddings");
    scaling.beta_fast = rope.number("beta_fast", 32.0);
    scaling.beta_slow = rope.number("beta_slow", 1.0);
    if (!(scaling.beta_slow > 0 && scaling.beta_fast >= scaling.beta_slow))
      throw FormatError("{}: beta_fast is {} and beta_slow {}, needed is 0 < beta_slow <= beta_fast. Correct them.",
                        rope.origin(), scaling.beta_fast, scaling.beta_slow);
    scaling.truncate = rope.boolean("truncate", true);
    scaling.attention_factor = rope.maybe_number("attention_factor");
    scaling.mscale = rope.maybe_number("mscale");
    scaling.mscale_all_dim = rope.maybe_number("mscale_all_dim");
  }
  return scaling;
}

void parse_rope(const Fields& fields, ModelConfig& config) {
  config.rope_theta = fields.number("rope_theta", 10000.0);
  for (const char* key : {"rope_parameters", "rope_scaling"}) {  // transformers 5, transformers 4
    if (!fields.has(key)) continue;
    if (!fields.at(key).is_object()) fields.wrong_type(key, "an object");
    const Fields rope(fields.at(key), fields.origin() + ": " + key);
    config.rope_theta = rope.number("rope_theta", config.rope_theta);
    config.rope_scaling = parse_rope_scaling(rope);
  }
  if (!(config.rope_theta > 1.0))
    throw FormatError("{}: rope_theta is {}, it must be above 1. Correct it.", fields.origin(), config.rope_theta);
}

void check_sizes(const ModelConfig& config, const std::string& origin) {
  if (config.num_heads % config.num_kv_heads != 0)
    throw FormatError(
        "{}: num_attention_heads is {} and num_key_value_heads {}, the second must divide the first. Correct them.",
        origin, config.num_heads, config.num_kv_heads);
  if (config.head_dim % 2 != 0)
    throw FormatError("{}: head_dim is {}, rotary embedding needs an even one. Correct it.", origin, config.head_dim);
  if (!(config.rms_norm_eps >= 0))
    throw FormatError("{}: rms_norm_eps is {}, it must not be negative. Correct it.", origin, config.rms_norm_eps);
  const double width = static_cast<double>(config.hidden_size);
  const double parameters =
      width * static_cast<double>(config.vocab_size) +
      static_cast<double>(config.num_layers) * width *
          static_cast<double>(3 * config.intermediate_size + 2 * config.q_size() + 2 * config.kv_size());
  if (!(parameters < 1e13))
    throw FormatError(
        "{}: the sizes amount to {} parameters, at most 1e13 can be addressed. Correct hidden_size, "
        "intermediate_size, num_hidden_layers or vocab_size.",
        origin, parameters);
}

}  // namespace

std::string_view family_name(ModelFamily family) { return facts_of(family).name; }
std::string architecture_name(const ModelConfig& config) {
  const std::string_view causal = facts_of(config.family).architecture;
  return config.lm_head ? std::string(causal) : classifier_name(causal);
}

std::optional<ModelFamily> parse_family(std::string_view name) {
  for (const FamilyFacts& facts : kFamilies)
    if (facts.name == name) return facts.family;
  return std::nullopt;
}

ModelConfig parse_model_config(const std::string& json_text, const std::string& origin) {
  const Json json = parse_object(json_text, origin);
  const Fields fields(json, origin);
  ModelConfig config;
  config.source_json = json_text;
  parse_architecture(fields, config);
  refuse_unsupported(fields);
  const bool llama = config.family == ModelFamily::kLlama;

  config.vocab_size = fields.size("vocab_size");
  config.hidden_size = fields.size("hidden_size");
  config.intermediate_size = fields.size("intermediate_size");
  config.num_layers = fields.size("num_hidden_layers");
  config.num_heads = fields.size("num_attention_heads");
  // absent and null differ for Qwen: the family's default against one a query head
  config.num_kv_heads =
      fields.size("num_key_value_heads", llama || json.contains("num_key_value_heads") ? config.num_heads : 32);
  if (fields.has("head_dim")) {
    config.head_dim = fields.size("head_dim");
  } else if (config.family == ModelFamily::kQwen3) {
    config.head_dim = 128;
  } else {
    if (config.hidden_size % config.num_heads != 0)
      throw FormatError(
          "{}: hidden_size is {} and num_attention_heads {}, the second must divide the first where head_dim is "
          "absent. Correct them or add head_dim.",
          origin, config.hidden_size, config.num_heads);
    config.head_dim = config.hidden_size / config.num_heads;
  }
  config.max_position_embeddings = fields.size("max_position_embeddings", llama ? 2048 : 32768);
  config.rms_norm_eps = fields.number("rms_norm_eps", 1e-6);
  parse_rope(fields, config);
  config.tie_word_embeddings = fields.boolean("tie_word_embeddings", false);

  config.qkv_bias = config.family == ModelFamily::kQwen2 || fields.boolean("attention_bias", false);
  config.o_bias = config.family != ModelFamily::kQwen2 && config.qkv_bias;
  config.mlp_bias = llama && fields.boolean("mlp_bias", false);
  config.qk_norm = config.family == ModelFamily::kQwen3;

  config.eos_token_ids = fields.ids("eos_token_id");
  config.bos_token_id = fields.maybe_id("bos_token_id");
  config.pad_token_id = fields.maybe_id("pad_token_id");
  if (llama && !json.contains("eos_token_id")) config.eos_token_ids = {2};
  if (llama && !json.contains("bos_token_id")) config.bos_token_id = 1;
  check_sizes(config, origin);
  return config;
}

ModelConfig load_model_config(const std::string& directory) {
  const std::filesystem::path folder(directory);
  const std::string path = (folder / "config.json").string();
  std::error_code code;
  if (!std::filesystem::is_directory(folder, code))
    throw IoError(
        "{}: no such model folder. Give the path of a folder in the Hugging Face layout (config.json, "
        "model.safetensors, tokenizer.json); models are not fetched by name.",
        directory);
  if (!file_exists(path))
    throw IoError(
        "{}: is missing. Give the path of a folder in the Hugging Face layout (config.json, model.safetensors, "
        "tokenizer.json).",
        path);
  ModelConfig config = parse_model_config(read_file(path), path);

  const std::string generation_path = (folder / "generation_config.json").string();
  if (file_exists(generation_path)) {
    config.source_generation_json = read_file(generation_path);
    const Json json = parse_object(config.source_generation_json, generation_path);
    const Fields fields(json, generation_path);
    if (fields.has("eos_token_id")) config.eos_token_ids = fields.ids("eos_token_id");
    if (!config.bos_token_id) config.bos_token_id = fields.maybe_id("bos_token_id");
    if (!config.pad_token_id) config.pad_token_id = fields.maybe_id("pad_token_id");
  }
  return config;
}

int64_t num_parameters(const ModelConfig& config) {
  int64_t total = 0;
  for (const ParameterSpec& spec : parameter_layout(config)) total += spec.num_elements();
  return total;
}

}  // namespace temper
