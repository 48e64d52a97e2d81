// A model directory made ready to compute with, not to train: for generate, score and whoever only asks a model.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/transformer.h"

namespace temper {

struct InferenceModel {
  Tokenizer tokenizer;
  std::optional<ChatTemplate> chat;
  std::unique_ptr<Transformer> model;
};

// dtype: auto (bf16 where the CPU multiplies it), f32 or bf16. ConfigError, before anything is allocated, for a model
// that the free memory cannot hold; the loaders' errors for what is missing or broken.
InferenceModel load_inference_model(const std::string& directory, const std::string& dtype);

}  // namespace temper
