// A model packed block by block, each block's memory given back, computes what one does whose parameters stay.
#include "apps/inference_model.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include "model/attention.h"
#include "model/initialize.h"
#include "model/matmul.h"

namespace temper {
namespace {

LoadedModel tiny(const std::string& family, at::ScalarType dtype) {
  ModelInit init;
  init.family = family;
  init.hidden_size = 64;
  init.intermediate_size = 128;
  init.num_layers = 2;
  init.num_heads = 4;
  init.num_kv_heads = 2;
  init.head_dim = 16;
  init.max_position_embeddings = 32;
  TokenizerFacts facts;
  facts.vocab_size = 260;
  LoadedModel model;
  model.config = new_model_config(init, facts);
  FlatParameters parameters(model.config);
  initialize_parameters(model.config, 5, parameters);
  at::manual_seed(5);
  for (const ParameterSpec& spec : parameters.specs())  // biases are born as zeros
    if (spec.name.ends_with(".bias")) parameters[spec.name].normal_();
  model.parameters = FlatParameters(parameters.specs(), parameters.flat().to(dtype));
  return model;
}

at::Tensor logits(const Transformer& model) {
  const at::NoGradGuard no_grad;
  const int64_t length = 12;
  const at::Tensor hidden = model.hidden_states(
      at::arange(40, 40 + length, at::kLong), at::arange(length, at::kLong), [&](int64_t, const at::Tensor& qkv) {
        return packed_attention_qkv(qkv, model.config().num_heads, model.config().num_kv_heads,
                                    {{.begin = 0, .end = length}}, model.attention_scale());
      });
  return model.logits(hidden);
}

TEST(PackModel, NothingThatStaysLivesInTheSourcesMemory) {
  for (const char* family : {"llama", "qwen2", "qwen3"})
    for (const at::ScalarType dtype : {at::kFloat, at::kBFloat16}) {
      if (dtype == at::kBFloat16 && !cpu_has_bf16()) continue;
      const LoadedModel source = tiny(family, dtype);
      Transformer whole(source.config, dtype, /*trainable=*/false);
      whole.load(source.parameters, 0);
      const auto packed = pack_model(tiny(family, dtype), {dtype, WeightFormat::kCompute, at::kCPU});
      EXPECT_TRUE(at::equal(logits(*packed), logits(whole))) << family << " " << at::toString(dtype);
    }
}

}  // namespace
}  // namespace temper
