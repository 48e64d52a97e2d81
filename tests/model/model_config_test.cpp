#include "model/model_config.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

json minimal(const std::string& model_type, const std::string& architecture) {
  return {{"model_type", model_type}, {"architectures", {architecture}}, {"vocab_size", 100},       {"hidden_size", 64},
          {"intermediate_size", 96},  {"num_hidden_layers", 3},          {"num_attention_heads", 4}};
}

json llama() { return minimal("llama", "LlamaForCausalLM"); }

ModelConfig parse(const json& text) { return parse_model_config(text.dump(), "config.json"); }

std::string message_of_config(const json& text) {
  try {
    parse(text);
  } catch (const FormatError& error) {
    return error.what();
  }
  return "accepted";
}

json with(json text, const std::string& key, const json& value) {
  text[key] = value;
  return text;
}

TEST(ModelConfig, AbsentKeysHaveTheDefaultsOfTheFamily) {
  const ModelConfig llama_config = parse(llama());
  EXPECT_EQ(llama_config.family, ModelFamily::kLlama);
  EXPECT_EQ(llama_config.num_kv_heads, 4);
  EXPECT_EQ(llama_config.head_dim, 16);
  EXPECT_EQ(llama_config.max_position_embeddings, 2048);
  EXPECT_EQ(llama_config.rms_norm_eps, 1e-6);
  EXPECT_EQ(llama_config.rope_theta, 10000.0);
  EXPECT_FALSE(llama_config.tie_word_embeddings);
  EXPECT_FALSE(llama_config.qkv_bias || llama_config.o_bias || llama_config.mlp_bias || llama_config.qk_norm);
  EXPECT_THAT(llama_config.eos_token_ids, ElementsAre(2));
  EXPECT_EQ(llama_config.bos_token_id, 1);
  EXPECT_EQ(llama_config.pad_token_id, std::nullopt);

  json qwen2 = with(minimal("qwen2", "Qwen2ForCausalLM"), "num_key_value_heads", 2);
  EXPECT_TRUE(parse(qwen2).qkv_bias);
  EXPECT_FALSE(parse(qwen2).o_bias);
  EXPECT_EQ(parse(qwen2).max_position_embeddings, 32768);
  EXPECT_TRUE(parse(qwen2).eos_token_ids.empty());
  EXPECT_EQ(parse(with(qwen2, "num_key_value_heads", nullptr)).num_kv_heads, 4);

  const ModelConfig qwen3 = parse(with(minimal("qwen3", "Qwen3ForCausalLM"), "num_key_value_heads", 2));
  EXPECT_TRUE(qwen3.qk_norm);
  EXPECT_FALSE(qwen3.qkv_bias);
  EXPECT_EQ(qwen3.head_dim, 128);
}

TEST(ModelConfig, AttentionBiasMeansAllFourProjections) {
  const ModelConfig config = parse(with(with(llama(), "attention_bias", true), "mlp_bias", true));
  EXPECT_TRUE(config.qkv_bias && config.o_bias && config.mlp_bias);
}

TEST(ModelConfig, RopeScalingIsReadInEachSpelling) {
  const json old_form = {{"type", "linear"}, {"factor", 2}};
  EXPECT_EQ(parse(with(llama(), "rope_scaling", old_form)).rope_scaling.kind, RopeScaling::Kind::kLinear);
  EXPECT_EQ(parse(with(llama(), "rope_scaling", old_form)).rope_scaling.factor, 2.0);
  EXPECT_EQ(parse(with(llama(), "rope_scaling", {{"rope_type", "default"}})).rope_scaling, RopeScaling());

  const json yarn = {{"rope_type", "yarn"}, {"factor", 4.0}, {"beta_fast", 16.0}, {"mscale", 0.5}, {"truncate", false}};
  RopeScaling wanted;
  wanted.kind = RopeScaling::Kind::kYarn;
  wanted.factor = 4;
  wanted.beta_fast = 16;
  wanted.mscale = 0.5;
  wanted.truncate = false;
  EXPECT_EQ(parse(with(llama(), "rope_scaling", yarn)).rope_scaling, wanted);

  const json version5 = {{"rope_type", "llama3"},   {"rope_theta", 500000.0},
                         {"factor", 8.0},           {"low_freq_factor", 1.0},
                         {"high_freq_factor", 4.0}, {"original_max_position_embeddings", 8192}};
  const ModelConfig config = parse(with(llama(), "rope_parameters", version5));
  EXPECT_EQ(config.rope_theta, 500000.0);
  EXPECT_EQ(config.rope_scaling.kind, RopeScaling::Kind::kLlama3);
  EXPECT_EQ(config.rope_scaling.original_max_position_embeddings, 8192);
}

TEST(ModelConfig, GenerationConfigDecidesTheStopTokens) {
  const ModelConfig config = load_model_config(TEMPER_TEST_DATA "/llama");
  EXPECT_THAT(config.eos_token_ids, ElementsAre(2, 3));
  EXPECT_EQ(config.bos_token_id, 1);
  EXPECT_EQ(config.pad_token_id, 0);
  EXPECT_EQ(config.q_size(), 32);  // head_dim apart from hidden_size / num_heads = 4
  EXPECT_EQ(config.kv_size(), 16);
}

TEST(ModelConfig, UnsupportedModelsAreRefusedWithWhatIsSupported) {
  EXPECT_THAT(message_of_config(minimal("mistral", "MistralForCausalLM")),
              AllOf(HasSubstr("config.json"), HasSubstr("MistralForCausalLM"), HasSubstr("'mistral'"),
                    HasSubstr("LlamaForCausalLM"), HasSubstr("Qwen3ForCausalLM"), HasSubstr("choose such a model")));
  EXPECT_THAT(message_of_config(minimal("llama", "LlamaForTokenClassification")),
              HasSubstr("LlamaForTokenClassification"));
  EXPECT_THAT(message_of_config({{"vocab_size", 3}}), HasSubstr("is not supported"));
  EXPECT_THAT(message_of_config(with(llama(), "hidden_act", "gelu")),
              AllOf(HasSubstr("hidden_act is 'gelu'"), HasSubstr("silu")));
  EXPECT_THAT(message_of_config(with(minimal("qwen2", "Qwen2ForCausalLM"), "use_sliding_window", true)),
              AllOf(HasSubstr("use_sliding_window"), HasSubstr("Set use_sliding_window to false")));
  EXPECT_THAT(message_of_config(with(llama(), "layer_types", {"full_attention", "sliding_attention"})),
              HasSubstr("sliding-window"));
  EXPECT_THAT(message_of_config(with(llama(), "rope_scaling", {{"rope_type", "dynamic"}, {"factor", 2}})),
              AllOf(HasSubstr("rope_scaling: rope_type is 'dynamic'"), HasSubstr("linear, llama3 and yarn")));
  EXPECT_THAT(message_of_config(with(llama(), "quantization_config", {{"bits", 4}})),
              HasSubstr("Take the unquantised model"));
  EXPECT_THAT(message_of_config(with(llama(), "partial_rotary_factor", 0.5)),
              HasSubstr("partial_rotary_factor is 0.5"));
}

TEST(ModelConfig, ImpossibleValuesNameTheKeyAndTheFix) {
  json no_size = llama();
  no_size.erase("hidden_size");
  EXPECT_THAT(message_of_config(no_size), AllOf(HasSubstr("key hidden_size is missing"), HasSubstr("Add it")));
  EXPECT_THAT(message_of_config(with(llama(), "hidden_size", "64")),
              HasSubstr("hidden_size is \"64\", an integer is needed"));
  EXPECT_THAT(message_of_config(with(llama(), "num_hidden_layers", 0)), HasSubstr("num_hidden_layers is 0"));
  EXPECT_THAT(message_of_config(with(llama(), "vocab_size", -1)), HasSubstr("vocab_size is -1"));
  EXPECT_THAT(message_of_config(with(llama(), "num_key_value_heads", 3)), HasSubstr("num_key_value_heads 3"));
  EXPECT_THAT(message_of_config(with(llama(), "num_attention_heads", 5)), HasSubstr("add head_dim"));
  EXPECT_THAT(message_of_config(with(llama(), "head_dim", 15)), HasSubstr("head_dim is 15"));
  EXPECT_THAT(message_of_config(with(llama(), "rope_theta", 0)), HasSubstr("rope_theta is 0"));
  EXPECT_THAT(message_of_config(with(llama(), "tie_word_embeddings", 1)), HasSubstr("true or false"));
  EXPECT_THAT(message_of_config(with(llama(), "rope_scaling", {{"rope_type", "linear"}})),
              HasSubstr("rope_scaling: key factor is missing"));
  EXPECT_THAT(message_of_config(with(llama(), "eos_token_id", "</s>")), HasSubstr("a list of integers"));
  EXPECT_THAT(message_of_config(json::array({1})), HasSubstr("a JSON object is needed"));
  EXPECT_THROW(parse_model_config("{\"vocab_size\": ", "config.json"), FormatError);
}

TEST(ModelConfig, AbsentFolderAndAbsentFileAreIoErrors) {
  try {
    load_model_config("some/hub-name");
    FAIL();
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("some/hub-name: no such model folder"), HasSubstr("Give the path")));
  }
  EXPECT_THROW(load_model_config(TEMPER_TEST_DATA), IoError);
}

TEST(ModelConfig, ExportCarriesUnknownKeysAndChangesTheDtypeAlone) {
  const ModelConfig config = load_model_config(TEMPER_TEST_DATA "/llama");
  json before = json::parse(config.source_json);
  const json after = json::parse(to_config_json(config, at::kBFloat16));
  before["dtype"] = "bfloat16";
  EXPECT_EQ(after, before);
  EXPECT_EQ(after.at("note_of_the_authors").at("factor"), 0.1);

  ModelConfig changed = config;
  changed.tie_word_embeddings = true;
  before["tie_word_embeddings"] = true;
  EXPECT_EQ(json::parse(to_config_json(changed, at::kBFloat16)), before);
}

TEST(ModelConfig, ExportOfRopeParametersIsReadableByBothVersionsOfTransformers) {
  const ModelConfig config = parse(
      with(with(llama(), "rope_parameters", {{"rope_type", "default"}, {"rope_theta", 5000.0}}), "dtype", "bfloat16"));
  const json text = json::parse(to_config_json(config, at::kFloat));
  EXPECT_EQ(text.at("rope_theta"), 5000.0);
  EXPECT_EQ(text.at("rope_parameters").at("rope_theta"), 5000.0);
  EXPECT_EQ(text.at("dtype"), "float32");
}

TEST(ModelConfig, NewModelsReadBackAsTheyWere) {
  for (const char* name : {"llama", "llama_bias", "qwen2", "qwen2_yarn", "qwen3"}) {
    const ModelConfig config = load_model_config(std::string(TEMPER_TEST_DATA "/") + name);
    ModelConfig fresh = config;
    fresh.source_json.clear();
    fresh.source_generation_json.clear();
    const ModelConfig back = parse_model_config(to_config_json(fresh, at::kFloat), name);
    EXPECT_EQ(back.rope_scaling, config.rope_scaling) << name;
    EXPECT_EQ(back.rope_theta, config.rope_theta) << name;
    EXPECT_EQ(back.rms_norm_eps, config.rms_norm_eps) << name;
    EXPECT_EQ(back.eos_token_ids, config.eos_token_ids) << name;
    EXPECT_EQ(back.head_dim, config.head_dim) << name;
    EXPECT_EQ(back.num_kv_heads, config.num_kv_heads) << name;
    EXPECT_EQ(back.tie_word_embeddings, config.tie_word_embeddings) << name;
    EXPECT_EQ(back.o_bias, config.o_bias) << name;
    EXPECT_EQ(num_parameters(back), num_parameters(config)) << name;
    EXPECT_EQ(json::parse(to_generation_config_json(fresh)).at("eos_token_id"), (std::vector<int64_t>{2, 3})) << name;
  }
}

TEST(ModelConfig, SmolLm2HasItsPublishedNumberOfParameters) {
  json smollm2 = minimal("llama", "LlamaForCausalLM");
  smollm2.update(json{{"vocab_size", 49152},
                      {"hidden_size", 576},
                      {"intermediate_size", 1536},
                      {"num_hidden_layers", 30},
                      {"num_attention_heads", 9},
                      {"num_key_value_heads", 3},
                      {"tie_word_embeddings", true}});
  EXPECT_EQ(num_parameters(parse(smollm2)), 134515008);
}

}  // namespace
}  // namespace temper
