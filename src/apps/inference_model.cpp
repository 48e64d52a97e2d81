#include "apps/inference_model.h"

#include <algorithm>

#include "apps/choice_option.h"
#include "core/error.h"
#include "core/system_memory.h"
#include "model/large_pages.h"

namespace temper {
namespace {

// The parameters as loaded, which go as they are packed, and the embedding where it is the head as well.
void refuse_if_too_large(const std::string& directory, const ModelConfig& config, const ComputeType& type) {
  const double loaded = static_cast<double>(c10::elementSize(type.compute));
  const double packed = type.weights == WeightFormat::kInt8 ? 1 : loaded;
  const double shared = config.tie_word_embeddings ? static_cast<double>(config.vocab_size * config.hidden_size) : 0;
  const double needed = static_cast<double>(num_parameters(config)) * std::max(loaded, packed) + shared * loaded;
  const auto available = static_cast<double>(available_memory_bytes());
  if (needed > available)
    throw ConfigError(
        "--model={}: {} million parameters need {} MB of memory while they are loaded, {} MB are free. Free some, "
        "or use a smaller model.",
        directory, num_parameters(config) / 1000000, static_cast<int64_t>(needed / 1e6),
        static_cast<int64_t>(available / 1e6));
}

}  // namespace

void declare_compute_type(CommandLine& line) {
  line.add_option(
      "dtype", "auto|f32|bf16|int8",
      "of the computation; auto: bf16 where the processor multiplies it; int8: as auto, with weights of one "
      "byte",
      "auto");
  line.add_option("device", "auto|cpu|cuda", "of the computation; auto: a GPU where there is one", "auto");
}

Device device_of(const CommandLine& line) { return choice_of<Device>(line, "device"); }

ComputeType compute_type_of(const CommandLine& line) {
  return rollout_type(choice_of<RolloutDtype>(line, "dtype"), training_type(Dtype::kAuto, device_of(line)));
}

InferenceModel load_inference_model(const std::string& directory, const ComputeType& type) {
  refuse_if_too_large(directory, load_model_config(directory), type);
  InferenceModel loaded{Tokenizer::load(directory), ChatTemplate::load(directory), nullptr, 0};
  loaded.peak_before_weights_bytes = peak_rss_bytes();
  loaded.model = pack_model(load_model(directory, type.compute), type);
  return loaded;
}

std::unique_ptr<Transformer> pack_model(LoadedModel source, const ComputeType& type) {
  const FlatParameters& parameters = source.parameters;
  auto model =
      std::make_unique<Transformer>(source.config, type.compute, /*trainable=*/false, type.weights, type.device);
  model->load_ends(parameters, 0);
  release_memory(parameters["model.embed_tokens.weight"]);
  return_freed_memory();
  for (int64_t block = 0; block < source.config.num_layers; ++block) {
    model->load_block(block, parameters);
    const std::string prefix = format("model.layers.{}.", block);
    for (const ParameterSpec& spec : parameters.specs())
      if (spec.name.starts_with(prefix)) release_memory(parameters[spec.name]);
  }
  return_freed_memory();
  return model;
}

}  // namespace temper
