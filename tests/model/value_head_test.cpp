// Critics and reward models: the body of a language model under a head that gives one number a token.
#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "model/hf_directory.h"
#include "model/initialize.h"
#include "model/packed_sequences.h"
#include "model/transformer.h"

namespace temper {
namespace {

using testing::HasSubstr;

LoadedModel tiny_model(bool tied = true) {
  ModelInit init;
  init.family = "qwen2";
  init.hidden_size = 64;
  init.num_layers = 3;
  init.num_heads = 4;
  init.num_kv_heads = 2;
  init.max_position_embeddings = 64;
  init.tie_word_embeddings = tied;
  LoadedModel model;
  model.config = new_model_config(init, {97, {}, {}, {}});
  model.parameters = FlatParameters(model.config);
  initialize_parameters(model.config, 5, model.parameters);
  return model;
}

LoadedModel tiny_critic() {
  LoadedModel critic = with_heads(tiny_model(), false, true);
  critic.parameters["score.weight"].copy_(at::arange(64).to(at::kFloat).sin().view({1, 64}));
  return critic;
}

PackedSequences sequences() {
  SequencePacker packer(RowOf::kPredictor);
  packer.begin_group(std::vector<int32_t>{3, 1, 4, 1, 5});
  packer.add(std::vector<int32_t>{9, 2, 6});
  packer.add(std::vector<int32_t>{5, 3, 5, 8});
  packer.begin_group(std::vector<int32_t>{9, 7});
  packer.add(std::vector<int32_t>{9, 3});
  return packer.finish();
}

at::Tensor hidden_of(const Transformer& model, const PackedSequences& packed) {
  const ModelConfig& config = model.config();
  const auto attention = [&config, &packed, &model](int64_t, const at::Tensor& qkv) {
    return packed_attention_qkv(qkv, config.num_heads, config.num_kv_heads, packed.segments, model.attention_scale());
  };
  return model.hidden_states(packed.token_ids, packed.positions, attention).index_select(0, packed.rows);
}

TEST(ValueHead, ANewOneSaysZeroAndKeepsTheBody) {
  const LoadedModel source = tiny_model(/*tied=*/false);
  const LoadedModel critic = with_heads(source, false, true);
  EXPECT_FALSE(critic.parameters.contains("lm_head.weight"));
  EXPECT_TRUE(
      at::equal(critic.parameters["model.embed_tokens.weight"], source.parameters["model.embed_tokens.weight"]));
  Transformer model(critic.config, at::kFloat, false);
  model.load(critic.parameters, 0);
  const at::NoGradGuard no_grad;
  EXPECT_EQ(model.values(hidden_of(model, sequences())).abs().max().item<float>(), 0);
}

TEST(ValueHead, GradientsOfHeadAndBodyAreThoseOfFiniteDifferences) {
  LoadedModel critic = tiny_critic();
  FlatParameters gradients(critic.parameters.specs());
  const PackedSequences packed = sequences();
  const at::Tensor weights = at::arange(packed.targets.numel()).to(at::kFloat).cos();
  const auto loss_of = [&](const FlatParameters& parameters) {
    const at::NoGradGuard no_grad;
    Transformer model(critic.config, at::kFloat, false);
    model.load(parameters, 0);
    return (model.values(hidden_of(model, packed)).to(at::kDouble) * weights).sum().item<double>();
  };
  Transformer model(critic.config, at::kFloat, true);
  model.load(critic.parameters, 0);
  model.set_gradients(gradients);
  (model.values(hidden_of(model, packed)) * weights).sum().backward();
  for (const char* name : {"score.weight", "model.norm.weight", "model.layers.1.mlp.down_proj.weight"}) {
    const at::Tensor direction = at::arange(gradients[name].numel()).to(at::kFloat).sin().view(gradients[name].sizes());
    FlatParameters moved(critic.parameters.specs(), critic.parameters.flat().clone());
    const double step = 3e-3;
    moved[name].add_(direction, step);
    const double up = loss_of(moved);
    moved[name].sub_(direction, 2 * step);
    const double difference = (up - loss_of(moved)) / (2 * step);
    const double analytic = (gradients[name] * direction).sum().item<double>();
    EXPECT_NEAR(analytic, difference, 2e-3 * std::abs(difference) + 1e-3) << name;
  }
}

TEST(ValueHead, ADirectoryComesBackAsAClassifierOfOneLabel) {
  const std::string folder = testing::TempDir() + "/critic";
  std::filesystem::remove_all(folder);
  make_directories(folder);
  const LoadedModel critic = tiny_critic();
  write_model_files(folder, critic.config, critic.parameters, at::kFloat);
  EXPECT_THAT(read_file(folder + "/config.json"), HasSubstr("Qwen2ForSequenceClassification"));
  const LoadedModel back = load_model(folder);
  EXPECT_TRUE(back.config.value_head);
  EXPECT_FALSE(back.config.lm_head);
  EXPECT_TRUE(at::equal(back.parameters.flat(), critic.parameters.flat()));
}

TEST(ValueHead, ASharedOneStaysBehindInAnExportedPolicy) {
  const std::string folder = testing::TempDir() + "/policy";
  std::filesystem::remove_all(folder);
  make_directories(folder);
  const LoadedModel both = with_heads(tiny_model(), true, true);
  ModelConfig exported = both.config;
  exported.value_head = false;
  write_model_files(folder, exported, both.parameters, at::kFloat);
  const LoadedModel back = load_model(folder);
  EXPECT_FALSE(back.parameters.contains("score.weight"));
  EXPECT_TRUE(at::equal(back.parameters.flat(), tiny_model().parameters.flat()));
}

TEST(ValueHead, AClassifierOfSeveralLabelsIsRefused) {
  const LoadedModel critic = tiny_critic();
  std::string json = to_config_json(critic.config, at::kFloat);
  const std::string one = "\"0\": \"LABEL_0\"";
  json.replace(json.find(one), one.size(), one + ", \"1\": \"LABEL_1\"");
  try {
    parse_model_config(json, "config.json");
    FAIL() << "two labels were taken";
  } catch (const FormatError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("2 labels"), HasSubstr("gives one number")));
  }
}

TEST(Recompute, GradientsHaveTheSameBits) {
  for (const at::ScalarType compute : {at::kFloat, at::kBFloat16}) {
    if (compute == at::kBFloat16 && !cpu_has_bf16()) continue;
    std::vector<at::Tensor> gradients;
    for (const bool recompute : {false, true}) {
      const LoadedModel critic = tiny_critic();
      FlatParameters gradient(critic.parameters.specs());
      Transformer model(critic.config, compute, true);
      model.load(critic.parameters, 0);
      model.set_gradients(gradient);
      model.set_recompute(recompute);
      model.values(hidden_of(model, sequences())).cos().sum().backward();
      gradients.push_back(gradient.flat());
    }
    EXPECT_GT(gradients[0].abs().max().item<float>(), 0);
    EXPECT_TRUE(at::equal(gradients[0], gradients[1]));
  }
}

}  // namespace
}  // namespace temper
