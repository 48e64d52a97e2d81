// A model whose weights are read when they are wanted, one parameter at a time: so that no rank needs room for all of a
// model that is shared out among many. They come from a directory (open_model), a generator (random_weights) or memory.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <string>

#include "model/model_config.h"
#include "model/parameters.h"
#include "model/tensor_parallel.h"

namespace temper {

struct ModelWeights {
  ModelConfig config;
  at::ScalarType stored_dtype = at::kFloat;  // of the file; f32 where its tensors differ
  // Fills `out`, a contiguous tensor of the CPU in the parameter's shape and of any floating type. One thread at a
  // time.
  std::function<void(const std::string& name, const at::Tensor& out)> read;
};

// The same, all in memory.
struct LoadedModel {
  ModelConfig config;
  FlatParameters parameters;  // f32 masters, unless another dtype was asked for
  at::ScalarType stored_dtype = at::kFloat;
};
ModelWeights weights_of(LoadedModel model);
LoadedModel load(const ModelWeights& weights, at::ScalarType dtype = at::kFloat);

// Fills `out`, on any device, whose parameters are some of the model's, or of a rank's part of each.
void read_parameters(const ModelWeights& weights, const FlatParameters& out, const TensorPart& part = {});

// XXH3-128 of the whole model's flat f32 buffer, in hexadecimal.
std::string hash_of(const ModelWeights& weights);

// The model under the given heads: of a language model a critic, of a critic another. A value head that the source does
// not have is zero, so that it starts at V = 0. REQUIRES: lm_head only where the source has one.
ModelWeights with_heads(ModelWeights source, bool lm_head, bool value_head);
LoadedModel with_heads(const LoadedModel& source, bool lm_head, bool value_head);

}  // namespace temper
