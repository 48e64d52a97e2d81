#include "model/parameters.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

namespace temper {
namespace {

using testing::ElementsAre;

// Sizes that are no multiples of 16, so that every gap shows.
ModelConfig odd_config() {
  ModelConfig config;
  config.family = ModelFamily::kLlama;
  config.vocab_size = 7;
  config.hidden_size = 6;
  config.intermediate_size = 5;
  config.num_layers = 2;
  config.num_heads = 2;
  config.num_kv_heads = 1;
  config.head_dim = 2;
  config.max_position_embeddings = 8;
  config.qkv_bias = config.o_bias = config.mlp_bias = config.qk_norm = true;
  return config;
}

TEST(FlatParameters, FollowTheOrderOfTheLayersWithFusedNeighbours) {
  std::vector<std::string> names;
  for (const ParameterSpec& spec : parameter_layout(odd_config()))
    if (spec.name.find("layers.0.") == std::string::npos) names.push_back(spec.name);
  const std::string layer = "model.layers.1.";
  EXPECT_THAT(
      names,
      ElementsAre("model.embed_tokens.weight", layer + "input_layernorm.weight", layer + "self_attn.q_proj.weight",
                  layer + "self_attn.k_proj.weight", layer + "self_attn.v_proj.weight", layer + "self_attn.q_proj.bias",
                  layer + "self_attn.k_proj.bias", layer + "self_attn.v_proj.bias", layer + "self_attn.q_norm.weight",
                  layer + "self_attn.k_norm.weight", layer + "self_attn.o_proj.weight", layer + "self_attn.o_proj.bias",
                  layer + "post_attention_layernorm.weight", layer + "mlp.gate_proj.weight",
                  layer + "mlp.up_proj.weight", layer + "mlp.gate_proj.bias", layer + "mlp.up_proj.bias",
                  layer + "mlp.down_proj.weight", layer + "mlp.down_proj.bias", "model.norm.weight", "lm_head.weight"));
}

TEST(FlatParameters, BlocksStartAtMultiplesOfSixteenAndFusedNeighboursTouch) {
  const FlatParameters parameters(odd_config());
  int64_t end = 0;
  for (const ParameterSpec& spec : parameters.specs()) {
    EXPECT_GE(spec.offset, end) << spec.name;
    const bool fused = spec.name.find("k_proj") != std::string::npos || spec.name.find("v_proj") != std::string::npos ||
                       spec.name.find("up_proj") != std::string::npos;
    if (fused)
      EXPECT_EQ(spec.offset, end) << spec.name;
    else
      EXPECT_EQ(spec.offset % 16, 0) << spec.name;
    end = spec.offset + spec.num_elements();
  }
  EXPECT_EQ(parameters.flat().numel(), (end + 15) / 16 * 16);
  EXPECT_EQ(parameters.flat().abs().sum().item<float>(), 0.0f);
}

TEST(FlatParameters, SpanIsTheConcatenationAndWritesThrough) {
  FlatParameters parameters(odd_config());
  parameters.flat().copy_(at::arange(parameters.flat().numel(), at::kFloat));
  const std::string attention = "model.layers.1.self_attn.";
  const at::Tensor qkv = parameters.span(attention + "q_proj.weight", attention + "v_proj.weight", {8, 6});
  const at::Tensor wanted = at::cat({parameters[attention + "q_proj.weight"], parameters[attention + "k_proj.weight"],
                                     parameters[attention + "v_proj.weight"]});
  EXPECT_TRUE(at::equal(qkv, wanted));
  qkv.select(0, 4).fill_(-1);
  EXPECT_TRUE(at::equal(parameters[attention + "k_proj.weight"].select(0, 0), at::full({6}, -1.0)));
  EXPECT_TRUE(at::equal(parameters.span(attention + "q_proj.bias", attention + "v_proj.bias", {8}),
                        at::cat({parameters[attention + "q_proj.bias"], parameters[attention + "k_proj.bias"],
                                 parameters[attention + "v_proj.bias"]})));
  EXPECT_ANY_THROW(parameters.span(attention + "o_proj.weight", attention + "o_proj.bias", {-1}));
  EXPECT_ANY_THROW(parameters["model.layers.2.mlp.up_proj.weight"]);
}

TEST(FlatParameters, GradientsShareTheLayoutOverABufferOfTheirOwn) {
  const FlatParameters weights(odd_config(), at::kBFloat16);
  const FlatParameters gradients(weights.specs(), at::ones_like(weights.flat(), at::kFloat));
  EXPECT_EQ(weights["model.norm.weight"].scalar_type(), at::kBFloat16);
  EXPECT_TRUE(at::equal(gradients["model.norm.weight"], at::ones({6})));
  EXPECT_ANY_THROW(FlatParameters(weights.specs(), at::ones({3})));
}

TEST(FlatParameters, TiedModelsHaveNoOutputLayer) {
  ModelConfig config = odd_config();
  config.tie_word_embeddings = true;
  EXPECT_FALSE(FlatParameters(config).contains("lm_head.weight"));
  EXPECT_EQ(num_parameters(odd_config()) - num_parameters(config), 7 * 6);
}

}  // namespace
}  // namespace temper
