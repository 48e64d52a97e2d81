// A model directory in the Hugging Face layout: config.json, generation_config.json, model.safetensors or its shards
// with model.safetensors.index.json. (Tokenizer files are src/data's.) What is exported in the dtype it was loaded in
// has the same bytes.
#pragma once
#include <string>

#include "model/model_weights.h"
#include "model/safetensors.h"

namespace temper {

// Reads the headers and checks everything: a tensor that is missing, misshapen, left over or of an unknown dtype is a
// FormatError that names the file, the tensor and the fix.
ModelWeights open_model(const std::string& directory);
// All of it.
LoadedModel load_model(const std::string& directory, at::ScalarType dtype = at::kFloat);

// The dtype of the directory's tensors, f32 where they differ, from the files' headers alone.
at::ScalarType stored_dtype(const std::string& directory);

// Fills `folder`, which exists, with config.json, generation_config.json and model.safetensors in `dtype`. The caller
// makes the folder atomic (checkpoint/atomic_directory.h). The parameters come in any order and number of calls, so
// that the whole model need not be in memory.
class ModelFilesWriter {
 public:
  ModelFilesWriter(const std::string& folder, const ModelConfig& config, at::ScalarType dtype);
  // On any device. What the configuration does not describe is left out: a policy's shared value head, say.
  void write(const FlatParameters& some);
  // REQUIRES: all of them have come.
  void finish();

 private:
  std::string folder_;
  ModelConfig config_;
  at::ScalarType dtype_;
  SafetensorsWriter weights_;
};

// The same for a model that is in memory.
void write_model_files(const std::string& folder, const ModelConfig& config, const FlatParameters& parameters,
                       at::ScalarType dtype);

}  // namespace temper
