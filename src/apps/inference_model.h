// A model directory made ready to compute with, not to train: for generate, score and whoever only asks a model.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "apps/command_line.h"
#include "apps/model_source.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/hf_directory.h"
#include "model/transformer.h"

namespace temper {

struct InferenceModel {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat;
  std::unique_ptr<Transformer> model;
  int64_t peak_before_weights_bytes = 0;  // resident: program, libraries, tokenizer
};

// --dtype auto|f32|bf16|int8, of the computation (int8: the weights alone), and --device auto|cpu|cuda.
void declare_compute_type(CommandLine& line);
Device device_of(const CommandLine& line);
ComputeType compute_type_of(const CommandLine& line);

// ConfigError, before anything is allocated, for a model that the free memory cannot hold; the loaders' errors for what
// is missing or broken.
InferenceModel load_inference_model(const std::string& directory, const ComputeType& type);

// Packed, to compute with. Each block of the source gives its memory back as soon as it is packed, so that both are
// never there whole. REQUIRES: the source's parameters are on the CPU and nobody else's.
std::unique_ptr<Transformer> pack_model(LoadedModel source, const ComputeType& type);

}  // namespace temper
