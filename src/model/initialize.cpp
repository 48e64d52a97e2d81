#include "model/initialize.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cmath>

#include "core/error.h"
#include "core/hash.h"
#include "core/rng.h"

namespace temper {
namespace {

constexpr double kWeightStd = 0.02;  // the families' initializer_range

void require_size(std::string_view key, int64_t value) {
  if (value < 1 || value > (int64_t{1} << 24))
    throw ConfigError("model.init.{} is {}. Set it between 1 and 16777216.", key, value);
}

void check_heads(const ModelInit& init, const ModelConfig& config) {
  if (config.num_heads % config.num_kv_heads != 0)
    throw ConfigError(
        "model.init.num_kv_heads is {} and model.init.num_heads {}: the first must divide the second. Set num_kv_heads "
        "to {} "
        "or 1.",
        config.num_kv_heads, config.num_heads, config.num_heads);
  if (config.head_dim % 2 != 0)
    throw ConfigError("model.init.head_dim is {}{}: rotary embedding needs an even one. Set model.init.head_dim to {}.",
                      config.head_dim,
                      init.head_dim == 0 ? format(" (hidden_size {} / num_heads {})", init.hidden_size, init.num_heads)
                                         : std::string(),
                      config.head_dim + 1);
}

void check_vocabulary(const ModelConfig& config, const TokenizerFacts& tokenizer) {
  if (config.vocab_size < tokenizer.vocab_size)
    throw ConfigError(
        "model.init.vocab_size is {}, the tokenizer has {} ids. Set it to {} or more, or to 0 for the tokenizer's.",
        config.vocab_size, tokenizer.vocab_size, tokenizer.vocab_size);
}

// Zero mean, unit variance: the sum of eight 16-bit uniforms (Irwin-Hall). Integers up to the last step, so that no
// machine's libm or fused multiply-add changes a bit; its tails end at 4.9 standard deviations.
float bell_draw(uint64_t element, const std::array<uint32_t, 2>& key) {
  const auto words = philox4x32({static_cast<uint32_t>(element), static_cast<uint32_t>(element >> 32), 0, 0}, key);
  int32_t sum = 0;
  for (const uint32_t word : words) sum += static_cast<int32_t>((word & 0xFFFFu) + (word >> 16));
  constexpr int32_t kTwiceMean = 8 * 65535;
  constexpr double kTwiceStd = 107019.83984290015;  // 2 sqrt(8 (65536^2 - 1) / 12)
  return static_cast<float>(static_cast<double>(2 * sum - kTwiceMean) / kTwiceStd);
}

void fill_with_bell(at::Tensor out, double standard_deviation, uint64_t seed, std::string_view name) {
  const uint64_t stream = SplitMix64(seed ^ xxh3_64(name)).next();
  const std::array<uint32_t, 2> key = {static_cast<uint32_t>(stream), static_cast<uint32_t>(stream >> 32)};
  const auto scale = static_cast<float>(standard_deviation);
  at::Tensor values = at::empty(out.sizes(), at::kFloat);
  float* data = values.mutable_data_ptr<float>();
  at::parallel_for(0, values.numel(), 1 << 16, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) data[i] = scale * bell_draw(static_cast<uint64_t>(i), key);
  });
  out.copy_(values);
}

}  // namespace

ModelConfig new_model_config(const ModelInit& init, const TokenizerFacts& tokenizer) {
  const std::optional<ModelFamily> family = parse_family(init.family);
  if (!family) throw ConfigError("model.init.family is '{}'. Set it to llama, qwen2 or qwen3.", init.family);
  ModelConfig config;
  config.family = *family;
  config.vocab_size = init.vocab_size != 0 ? init.vocab_size : tokenizer.vocab_size;
  config.hidden_size = init.hidden_size;
  config.intermediate_size =
      init.intermediate_size != 0 ? init.intermediate_size : (init.hidden_size * 8 / 3 + 31) / 32 * 32;
  config.num_layers = init.num_layers;
  config.num_heads = init.num_heads;
  config.num_kv_heads = init.num_kv_heads != 0 ? init.num_kv_heads : init.num_heads;
  config.max_position_embeddings = init.max_position_embeddings;
  config.rms_norm_eps = init.rms_norm_eps;
  config.rope_theta = init.rope_theta;
  config.tie_word_embeddings = init.tie_word_embeddings;
  config.qkv_bias = *family == ModelFamily::kQwen2;
  config.qk_norm = *family == ModelFamily::kQwen3;
  config.eos_token_ids = tokenizer.eos_token_ids;
  config.bos_token_id = tokenizer.bos_token_id;
  config.pad_token_id = tokenizer.pad_token_id;

  require_size("vocab_size", config.vocab_size);
  require_size("hidden_size", config.hidden_size);
  require_size("intermediate_size", config.intermediate_size);
  require_size("num_layers", config.num_layers);
  require_size("num_heads", config.num_heads);
  require_size("num_kv_heads", config.num_kv_heads);
  require_size("max_position_embeddings", config.max_position_embeddings);
  if (init.head_dim == 0 && init.hidden_size % init.num_heads != 0)
    throw ConfigError(
        "model.init.num_heads is {} and model.init.hidden_size {}: the first must divide the second. Set hidden_size "
        "to {}, or "
        "set model.init.head_dim.",
        init.num_heads, init.hidden_size, (init.hidden_size / init.num_heads + 1) * init.num_heads);
  config.head_dim = init.head_dim != 0 ? init.head_dim : init.hidden_size / init.num_heads;
  require_size("head_dim", config.head_dim);
  check_heads(init, config);
  check_vocabulary(config, tokenizer);
  if (!(config.rms_norm_eps > 0 && config.rms_norm_eps < 1))
    throw ConfigError("model.init.rms_norm_eps is {}. Set it above 0 and below 1, for example 1e-5.",
                      config.rms_norm_eps);
  if (!(config.rope_theta > 1) || !std::isfinite(config.rope_theta))
    throw ConfigError("model.init.rope_theta is {}. Set it above 1, for example 10000.", config.rope_theta);
  return config;
}

ModelWeights random_weights(const ModelConfig& config, uint64_t seed) {
  // the residual stream is the sum of 2 num_layers of these outputs (Radford et al. 2019, section 2.3)
  const double residual_std = kWeightStd / std::sqrt(2.0 * static_cast<double>(config.num_layers));
  return {config, at::kFloat, [residual_std, seed](const std::string& name, at::Tensor out) {
            if (name.ends_with("bias") || name == "score.weight")
              out.zero_();
            else if (name.ends_with("norm.weight"))
              out.fill_(1.0);
            else if (name.ends_with("o_proj.weight") || name.ends_with("down_proj.weight"))
              fill_with_bell(out, residual_std, seed, name);
            else
              fill_with_bell(out, kWeightStd, seed, name);
          }};
}

void initialize_parameters(const ModelConfig& config, uint64_t seed, FlatParameters& parameters) {
  read_parameters(random_weights(config, seed), parameters);
}

}  // namespace temper
