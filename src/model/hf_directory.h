// A model directory in the Hugging Face layout: config.json, generation_config.json, model.safetensors or its shards
// with model.safetensors.index.json. (Tokenizer files are src/data's.) What is exported in the dtype it was loaded in
// has the same bytes.
#pragma once
#include <string>

#include "model/model_config.h"
#include "model/parameters.h"

namespace temper {

struct LoadedModel {
  ModelConfig config;
  FlatParameters parameters;                 // f32 masters, unless load_model was asked for another dtype
  at::ScalarType stored_dtype = at::kFloat;  // of the file; f32 where its tensors differ
};

// Reads and checks everything: a tensor that is missing, misshapen, left over or of an unknown dtype is a FormatError
// that names the file, the tensor and the fix.
LoadedModel load_model(const std::string& directory, at::ScalarType dtype = at::kFloat);

// A copy of the model under the given heads: of a language model a critic, of a critic another. A value head that the
// source does not have is zero, so that it starts at V = 0. REQUIRES: lm_head only where the source has one.
LoadedModel with_heads(const LoadedModel& source, bool lm_head, bool value_head);

// The dtype of the directory's tensors, f32 where they differ, from the files' headers alone.
at::ScalarType stored_dtype(const std::string& directory);

// Fills `folder`, which exists, with config.json, generation_config.json and model.safetensors in `dtype`: the tensors
// that `config` describes (so a policy's shared value head stays behind where config has none). The caller
// makes the folder atomic (checkpoint/atomic_directory.h).
void write_model_files(const std::string& folder, const ModelConfig& config, const FlatParameters& parameters,
                       at::ScalarType dtype);

}  // namespace temper
