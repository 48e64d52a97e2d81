// Models as a stage or a command starts from them: a directory's, or a new one's, with tokenizer and chat template.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "config/config.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/hf_directory.h"
#include "model/matmul.h"

namespace temper {

// kAuto becomes bf16 where the CPU multiplies it, else f32.
at::ScalarType compute_dtype(Dtype dtype);

// What a model computes with: the type of activations, and the weights' own.
struct ComputeType {
  at::ScalarType compute = at::kFloat;
  WeightFormat weights = WeightFormat::kCompute;
  bool operator==(const ComputeType&) const = default;
};
// Of rollouts; kAuto and the activations of kInt8 are the run's.
ComputeType rollout_type(RolloutDtype dtype, Dtype run);

// A model directory (or [model] init) with its tokenizer and chat template.
struct ModelSource {
  LoadedModel model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
};
ModelSource load_model_source(const std::string& directory);
ModelSource make_new_model(const ModelInit& init, int64_t seed);

}  // namespace temper
