#include "apps/export_model.h"

#include <ATen/ATen.h>

#include <filesystem>
#include <unordered_map>

#include "apps/model_source.h"
#include "checkpoint/atomic_directory.h"
#include "checkpoint/inspect.h"
#include "config/load.h"
#include "config/stage_models.h"
#include "core/error.h"
#include "model/hf_directory.h"

namespace temper {
namespace {

// The model that the run started from, for its tokenizer.
ModelShape find_origin(const ModelSection& model, const std::string& given) {
  const std::string& path = given.empty() ? model.path : given;
  if (!path.empty() && !std::filesystem::exists(path + "/config.json"))
    throw IoError(
        "{}: the model that the run started from is not there; its tokenizer is needed. Say with --model=DIR where it "
        "is now.",
        path);
  return load_model_shape(path, model.init);
}

// The checkpoint's tensors in the model's own layout.
FlatParameters gather(const std::string& checkpoint, const ModelConfig& config,
                      const std::vector<TensorEntry>& tensors) {
  FlatParameters parameters(config);
  std::unordered_map<std::string, const at::Tensor*> by_name;
  for (const TensorEntry& entry : tensors) by_name[entry.name.substr(std::string("model/").size())] = &entry.tensor;
  for (const ParameterSpec& spec : parameters.specs()) {
    const auto found = by_name.find(spec.name);
    if (found == by_name.end() || found->second->sizes() != at::IntArrayRef(spec.shape))
      throw FormatError(
          "checkpoint {}: tensor {} is not in it as its model says. It is no checkpoint of a training run.", checkpoint,
          spec.name);
    parameters[spec.name].copy_(*found->second);
  }
  return parameters;
}

}  // namespace

// auto: what the model was loaded in; a new model is f32.
at::ScalarType export_dtype(const Config& config, size_t stage, const std::string& origin) {
  const Dtype wanted = config.stages[stage].checkpoint.export_dtype;
  if (wanted != Dtype::kAuto) return wanted == Dtype::kBf16 ? at::kBFloat16 : at::kFloat;
  const std::string& path = origin.empty() ? origin_model(config, stage).path : origin;
  return path.empty() ? at::kFloat : stored_dtype(path);
}

void export_checkpoint(FileSystem& files, const std::string& checkpoint, const std::string& to,
                       const ExportOptions& options) {
  if (is_folder(to)) throw IoError("{} exists already. Give another folder, or move it away.", to);
  const CheckpointHeader header = read_checkpoint_header(files, checkpoint);
  const Config run = parse_config(header.config_toml, {}, checkpoint + "/config.toml");
  const auto stage = stage_index(run, header.stage);
  if (!stage || header.model_json.empty())
    throw FormatError(
        "checkpoint {}: it says of no stage or model what it is of. It is no checkpoint of a training run.",
        checkpoint);
  const ModelShape origin = find_origin(origin_model(run, *stage), options.origin);
  ModelConfig config = parse_model_config(header.model_json, checkpoint);
  const FlatParameters parameters = gather(checkpoint, config, read_tensors(files, checkpoint, "model/"));
  config.value_head = makes_reward_model(run.stages[*stage]);
  config.source_generation_json = origin.config.source_generation_json;
  config.eos_token_ids = origin.config.eos_token_ids;
  const at::ScalarType dtype = options.dtype ? *options.dtype : export_dtype(run, *stage, options.origin);
  write_directory_atomically(files, to, [&](const std::string& folder) {
    write_model_files(folder, config, parameters, dtype);
    origin.tokenizer->save(folder);
  });
}

}  // namespace temper
