#include "apps/inference_model.h"

#include "core/error.h"
#include "core/system_memory.h"
#include "model/hf_directory.h"

namespace temper {
namespace {

// The parameters as loaded, which go after packing, the packed copy, and the embedding where it is the head as well.
void refuse_if_too_large(const std::string& directory, const ModelConfig& config, at::ScalarType compute) {
  const double compute_bytes = static_cast<double>(c10::elementSize(compute));
  const double shared = config.tie_word_embeddings ? static_cast<double>(config.vocab_size * config.hidden_size) : 0;
  const double needed = static_cast<double>(num_parameters(config)) * 2 * compute_bytes + shared * compute_bytes;
  const auto available = static_cast<double>(available_memory_bytes());
  if (needed > available)
    throw ConfigError(
        "--model={}: {} million parameters need {} MB of memory while they are loaded, {} MB are free. Free some, "
        "or use a smaller model.",
        directory, num_parameters(config) / 1000000, static_cast<int64_t>(needed / 1e6),
        static_cast<int64_t>(available / 1e6));
}

}  // namespace

InferenceModel load_inference_model(const std::string& directory, const std::string& dtype) {
  const bool bf16 = dtype == "bf16" || (dtype == "auto" && cpu_has_bf16());
  const at::ScalarType compute = bf16 ? at::kBFloat16 : at::kFloat;
  refuse_if_too_large(directory, load_model_config(directory), compute);
  InferenceModel loaded{Tokenizer::load(directory), ChatTemplate::load(directory), nullptr};
  const LoadedModel source = load_model(directory, compute);
  loaded.model = std::make_unique<Transformer>(source.config, compute, /*trainable=*/false);
  loaded.model->load(source.parameters, 0);
  return loaded;
}

}  // namespace temper
