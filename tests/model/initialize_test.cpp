#include "model/initialize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "core/hash.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::ElementsAre;
using testing::HasSubstr;

ModelInit small(const std::string& family) {
  ModelInit init;
  init.family = family;
  init.hidden_size = 64;
  init.num_layers = 2;
  return init;
}

const TokenizerFacts kTokenizer = {260, {257, 258}, 256, 259};

std::string message_of(const ModelInit& init) {
  try {
    new_model_config(init, kTokenizer);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "accepted";
}

TEST(NewModel, DerivesWhatIsNotGiven) {
  const ModelConfig config = new_model_config(small("qwen3"), kTokenizer);
  EXPECT_EQ(config.family, ModelFamily::kQwen3);
  EXPECT_TRUE(config.qk_norm);
  EXPECT_FALSE(config.qkv_bias);
  EXPECT_EQ(config.vocab_size, 260);
  EXPECT_EQ(config.intermediate_size, 192);  // 170.67 rounded up to a multiple of 32
  EXPECT_EQ(config.num_kv_heads, 4);
  EXPECT_EQ(config.head_dim, 16);
  EXPECT_THAT(config.eos_token_ids, ElementsAre(257, 258));
  EXPECT_EQ(config.bos_token_id, 256);
  EXPECT_TRUE(new_model_config(small("qwen2"), kTokenizer).qkv_bias);
  const ModelConfig back = parse_model_config(to_config_json(config, at::kFloat), "new");
  EXPECT_EQ(num_parameters(back), num_parameters(config));
}

TEST(NewModel, ImpossibleShapesNameTheKeyAndAValueThatWorks) {
  EXPECT_THAT(message_of(small("gpt2")),
              AllOf(HasSubstr("model.init.family is 'gpt2'"), HasSubstr("llama, qwen2 or qwen3")));
  ModelInit init = small("llama");
  init.num_heads = 5;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.num_heads is 5"), HasSubstr("Set hidden_size to 65")));
  init = small("llama");
  init.num_kv_heads = 3;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.num_kv_heads is 3"), HasSubstr("Set num_kv_heads to 4")));
  init = small("llama");
  init.hidden_size = 60;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.head_dim is 15 (hidden_size 60 / num_heads 4)"),
                                      HasSubstr("Set model.init.head_dim to 16")));
  init = small("llama");
  init.num_layers = 0;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.num_layers is 0"), HasSubstr("Set it between 1 and")));
  init = small("llama");
  init.hidden_size = -64;
  EXPECT_THAT(message_of(init), HasSubstr("model.init.hidden_size is -64"));
  init = small("llama");
  init.num_heads = 0;
  EXPECT_THAT(message_of(init), HasSubstr("model.init.num_heads is 0"));
  init = small("llama");
  init.vocab_size = 100;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.vocab_size is 100"), HasSubstr("Set it to 260 or more")));
  init = small("llama");
  init.rms_norm_eps = 0;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.rms_norm_eps is 0"), HasSubstr("for example 1e-5")));
  init = small("llama");
  init.rope_theta = 1;
  EXPECT_THAT(message_of(init), AllOf(HasSubstr("model.init.rope_theta is 1"), HasSubstr("for example 10000")));
}

TEST(InitializeParameters, WeightsAreNormalNormsOneBiasesZero) {
  ModelInit init = small("qwen2");
  init.tie_word_embeddings = false;
  const ModelConfig config = new_model_config(init, kTokenizer);
  FlatParameters parameters(config);
  initialize_parameters(config, 42, parameters);
  for (const ParameterSpec& spec : parameters.specs()) {
    const at::Tensor values = parameters[spec.name];
    if (spec.name.ends_with("bias")) {
      EXPECT_TRUE(at::equal(values, at::zeros(spec.shape))) << spec.name;
    } else if (spec.name.ends_with("norm.weight")) {
      EXPECT_TRUE(at::equal(values, at::ones(spec.shape))) << spec.name;
    } else {
      const bool residual = spec.name.ends_with("o_proj.weight") || spec.name.ends_with("down_proj.weight");
      const double wanted = residual ? 0.01 : 0.02;  // two layers: sqrt(2 * 2) = 2
      const auto count = static_cast<double>(values.numel());
      EXPECT_NEAR(values.std().item<double>(), wanted, 4 * wanted / std::sqrt(2 * count)) << spec.name;
      EXPECT_NEAR(values.mean().item<double>(), 0.0, 4 * wanted / std::sqrt(count)) << spec.name;
    }
  }
  // a normal has 4.55 % beyond two standard deviations; the sum of eight uniforms 4.4 %
  const at::Tensor embedding = parameters["model.embed_tokens.weight"];
  EXPECT_NEAR(embedding.abs().gt(0.04).to(at::kFloat).mean().item<double>(), 0.044, 0.006);
}

TEST(InitializeParameters, TheSeedDecidesTheBitsWhateverTheThreads) {
  const ModelConfig config = new_model_config(small("llama"), kTokenizer);
  const auto hash_of = [&](uint64_t seed) {
    FlatParameters parameters(config);
    initialize_parameters(config, seed, parameters);
    return xxh3_64(parameters.flat().data_ptr(), parameters.flat().nbytes());
  };
  const int threads = at::get_num_threads();
  const uint64_t many = hash_of(42);
  at::set_num_threads(1);
  EXPECT_EQ(hash_of(42), many);
  at::set_num_threads(threads);
  EXPECT_NE(hash_of(43), many);
  EXPECT_EQ(hex64(many), "c0f337b4d9df5319");  // the bits of every machine
}

}  // namespace
}  // namespace temper
