// A new small model: [model] init = {family, hidden_size, …} → config and random weights. The weights depend on the
// seed, the parameter's name and the element's index alone, through integers: the same bits on every machine and number
// of threads.
#pragma once
#include <cstdint>
#include <optional>
#include <vector>

#include "config/config.h"
#include "model/model_config.h"
#include "model/model_weights.h"

namespace temper {

// What a new model takes over from its tokenizer.
struct TokenizerFacts {
  int64_t vocab_size = 0;  // ids are 0 … vocab_size - 1
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
};

// ConfigError, naming the key model.init.KEY and a value that works, for shapes that cannot be.
ModelConfig new_model_config(const ModelInit& init, const TokenizerFacts& tokenizer);

// Weights normal(0, 0.02), those of o_proj and down_proj divided by sqrt(2 num_layers), norms one, biases zero, a value
// head zero (so a new critic starts at V = 0).
ModelWeights random_weights(const ModelConfig& config, uint64_t seed);
void initialize_parameters(const ModelConfig& config, uint64_t seed, FlatParameters& parameters);

}  // namespace temper
