#include "apps/bench_model.h"

#include "core/error.h"
#include "core/system_memory.h"
#include "model/initialize.h"

namespace temper {
namespace {

// The shapes of SmolLM2-135M and Qwen3-0.6B; tiny is a model for tests.
ModelInit preset_shape(const std::string& preset) {
  ModelInit init;
  init.family = "llama";
  init.max_position_embeddings = 8192;
  if (preset == "tiny") {
    init.hidden_size = 64;
    init.intermediate_size = 192;
    init.num_layers = 2;
    init.num_heads = 4;
    init.num_kv_heads = 2;
    init.head_dim = 16;
    init.vocab_size = 1024;
  } else if (preset == "135m") {
    init.hidden_size = 576;
    init.intermediate_size = 1536;
    init.num_layers = 30;
    init.num_heads = 9;
    init.num_kv_heads = 3;
    init.head_dim = 64;
    init.vocab_size = 49152;
    init.rope_theta = 100000;
  } else {
    init.family = "qwen3";
    init.max_position_embeddings = 40960;
    init.hidden_size = 1024;
    init.intermediate_size = 3072;
    init.num_layers = 28;
    init.num_heads = 16;
    init.num_kv_heads = 8;
    init.head_dim = 128;
    init.vocab_size = 151936;
    init.rope_theta = 1000000;
  }
  init.tie_word_embeddings = true;
  return init;
}

bool takes_directory(const CommandLine& line) {
  if (line.given("model") == line.given("preset")) throw ConfigError("give either --model DIR or --preset 135m.");
  return line.given("model");
}

ModelWeights random_model(const CommandLine& line) {
  TokenizerFacts facts;
  facts.vocab_size = Tokenizer::bytes().vocab_size();
  return random_weights(new_model_config(preset_shape(line.one_of("preset", {"tiny", "135m", "0.6b"})), facts), 1);
}

}  // namespace

void declare_bench_source(CommandLine& line) {
  line.add_option("model", "DIR", "model directory (config.json, safetensors, tokenizer.json)");
  line.add_option("preset", "tiny|135m|0.6b",
                  "in place of --model: random weights, shaped as SmolLM2-135M, Qwen3-0.6B");
}

void declare_bench_model(CommandLine& line) {
  declare_bench_source(line);
  declare_compute_type(line);
}

InferenceModel load_bench_model(const CommandLine& line) {
  const ComputeType type = compute_type_of(line);
  if (takes_directory(line)) return load_inference_model(line.text("model"), type);
  InferenceModel made{Tokenizer::bytes(), {}, nullptr, peak_rss_bytes()};
  made.model = pack_model(load(random_model(line), type.compute), type);
  return made;
}

ModelWeights open_bench_masters(const CommandLine& line) {
  return takes_directory(line) ? open_model(line.text("model")) : random_model(line);
}

}  // namespace temper
