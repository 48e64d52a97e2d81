// A small random model with the byte tokenizer, and the plain way to compute what the engine computes.
#pragma once
#include <ATen/ATen.h>

#include <map>
#include <vector>

#include "core/format.h"
#include "core/rng.h"
#include "model/attention.h"
#include "model/initialize.h"
#include "model/transformer.h"
#include "rollout/engine.h"

namespace temper {

struct TinyModel {
  explicit TinyModel(uint64_t seed = 1, std::vector<int64_t> eos_token_ids = {}, int64_t context = 128)
      : tokenizer(Tokenizer::bytes()),
        config(make_config(std::move(eos_token_ids), context)),
        parameters(config),
        model(config, at::kFloat, /*trainable=*/false) {
    initialize_parameters(config, seed, parameters);
    // Wide enough that the next token depends on all before it.
    for (const ParameterSpec& spec : parameters.specs())
      if (spec.shape.size() == 2) parameters[spec.name].mul_(15);
    model.load(parameters, 0);
  }

  static ModelConfig make_config(std::vector<int64_t> eos_token_ids, int64_t context) {
    ModelInit init;
    init.family = "llama";
    init.hidden_size = 32;
    init.intermediate_size = 64;
    init.num_layers = 2;
    init.num_heads = 4;
    init.num_kv_heads = 2;
    init.head_dim = 16;
    init.max_position_embeddings = context;
    TokenizerFacts facts;
    facts.vocab_size = 260;
    facts.eos_token_ids = std::move(eos_token_ids);
    return new_model_config(init, facts);
  }

  // [T, V] logits of every position by one forward pass over all tokens.
  at::Tensor full_logits(const std::vector<int32_t>& token_ids) const {
    const auto length = static_cast<int64_t>(token_ids.size());
    at::NoGradGuard no_grad;
    const at::Tensor ids = at::tensor(std::vector<int64_t>(token_ids.begin(), token_ids.end()), at::kLong);
    const at::Tensor hidden =
        model.hidden_states(ids, at::arange(length, at::kLong), [&](int64_t, const at::Tensor& qkv) {
          return packed_attention_qkv(qkv, config.num_heads, config.num_kv_heads, {{.begin = 0, .end = length}},
                                      model.attention_scale());
        });
    return model.logits(hidden);
  }

  Tokenizer tokenizer;
  ModelConfig config;
  FlatParameters parameters;
  Transformer model;
};

// `length` ids of bytes, different for each seed.
inline std::vector<int32_t> random_prompt(uint64_t seed, int64_t length) {
  SplitMix64 random(seed);
  std::vector<int32_t> ids;
  for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random.in_range(0, 255)));
  return ids;
}

inline std::map<int64_t, GenerationResult> run_to_end(Engine& engine) {
  std::map<int64_t, GenerationResult> results;
  while (!engine.idle())
    for (GenerationResult& result : engine.step()) results.emplace(result.id, std::move(result));
  return results;
}

}  // namespace temper
