// Models as a stage or a command starts from them: a directory's, or a new one's, with tokenizer and chat template.
#pragma once
#include <memory>
#include <optional>
#include <string>

#include "config/config.h"
#include "data/chat_template.h"
#include "data/tokenizer.h"
#include "model/matmul.h"
#include "model/model_weights.h"

namespace temper {

// kAuto becomes the GPU of this process where there is one. ConfigError for kCuda without.
at::Device compute_device(Device device);

// What a model computes with: the type of activations, the weights' own, and where.
struct ComputeType {
  at::ScalarType compute = at::kFloat;
  WeightFormat weights = WeightFormat::kCompute;
  at::Device device = at::kCPU;
  bool operator==(const ComputeType&) const = default;
};
// Of training; Dtype::kAuto becomes bf16 on a GPU or where the CPU multiplies it, else f32.
ComputeType training_type(Dtype dtype, Device device);
inline ComputeType training_type(const RunSection& run) { return training_type(run.dtype, run.device); }
// Of rollouts; kAuto and the activations of kInt8 are the training's.
ComputeType rollout_type(RolloutDtype dtype, const ComputeType& training);
inline ComputeType rollout_type(const StageConfig& stage) {
  return rollout_type(stage.rollout.dtype, training_type(stage.run));
}
// "cpu, 2 threads", "cuda:0"
std::string describe(at::Device device);

// A model directory (or [model] init) with its tokenizer and chat template; the weights are read when they are used.
struct ModelSource {
  ModelWeights weights;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
};
ModelSource load_model_source(const std::string& directory);
ModelSource make_new_model(const ModelInit& init, int64_t seed);

// Shape and tokenizer of the same, without weights: of a directory, or (empty) of init.
struct ModelShape {
  ModelConfig config;
  std::unique_ptr<Tokenizer> tokenizer;
};
ModelShape load_model_shape(const std::string& directory, const ModelInit& init);

}  // namespace temper
