// A new small model: [model] init = {family, hidden_size, …} → config and random weights. The weights depend on the seed, the
// parameter's name and the element's index alone, through integers: the same bits on every machine and number of threads.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "model/model_config.h"
#include "model/parameters.h"

namespace temper {

// The keys of [model] init, with their defaults. Zero or empty: derived, as the comment says.
struct NewModel {
  std::string family = "llama";
  int64_t vocab_size = 0;              // required; the tokenizer's number of ids
  int64_t hidden_size = 128;
  int64_t intermediate_size = 0;       // 0: 8/3 of hidden_size, rounded up to a multiple of 32
  int64_t num_layers = 4;
  int64_t num_heads = 4;
  int64_t num_kv_heads = 0;            // 0: num_heads
  int64_t head_dim = 0;                // 0: hidden_size / num_heads
  int64_t max_position_embeddings = 2048;
  double rms_norm_eps = 1e-5;
  double rope_theta = 10000.0;
  bool tie_word_embeddings = true;
  double initializer_range = 0.02;     // standard deviation; o_proj and down_proj get it divided by sqrt(2 num_layers)
  std::vector<int64_t> eos_token_ids;
  std::optional<int64_t> bos_token_id;
  std::optional<int64_t> pad_token_id;
};

// ConfigError, naming the key model.init.KEY and a value that works, for shapes that cannot be.
ModelConfig new_model_config(const NewModel& keys);

// Weights normal(0, initializer_range), norms one, biases zero, into a zeroed buffer of any dtype.
void initialize_parameters(const ModelConfig& config, uint64_t seed, FlatParameters& parameters,
                           double initializer_range = 0.02);

}  // namespace temper
