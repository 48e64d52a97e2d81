#include "model/hf_directory.h"

#include <ATen/ATen.h>

#include <cstring>
#include <filesystem>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <optional>

#include "core/error.h"
#include "core/files.h"
#include "core/log.h"

namespace temper {
namespace {

constexpr const char* kWeights = "model.safetensors";
constexpr const char* kIndex = "model.safetensors.index.json";

std::string in(const std::string& directory, const std::string& name) {
  return (std::filesystem::path(directory) / name).string();
}

// The shards that hold a model's tensors, and which tensor lies in which.
struct Shards {
  std::string description;  // the file that lists the tensors, for messages
  std::vector<std::unique_ptr<SafetensorsFile>> files;
  std::map<std::string, const SafetensorsFile*> holder;  // by tensor
};

void add_shard(Shards& shards, std::unique_ptr<SafetensorsFile> file) {
  for (const SafetensorsEntry& entry : file->entries()) {
    const auto [place, inserted] = shards.holder.emplace(entry.name, file.get());
    if (!inserted)
      throw FormatError("{}: tensor {} is in {} too. Fetch the model again.", file->path(), entry.name,
                        place->second->path());
  }
  shards.files.push_back(std::move(file));
}

Shards open_indexed_shards(const std::string& directory, const std::string& index_path) {
  std::map<std::string, std::string> weight_map;
  try {
    weight_map =
        nlohmann::json::parse(read_file(index_path)).at("weight_map").get<std::map<std::string, std::string>>();
  } catch (const nlohmann::json::exception& error) {
    throw FormatError(
        "{}: is not an index of shards: an object 'weight_map' from tensor to file is needed ({}). Fetch the file "
        "again.",
        index_path, error.what());
  }
  Shards shards;
  shards.description = index_path;
  std::map<std::string, const SafetensorsFile*> by_name;
  for (const auto& [tensor, file_name] : weight_map) {
    if (file_name.empty() || std::filesystem::path(file_name).filename() != file_name)
      throw FormatError(
          "{}: tensor {} is said to be in '{}', a file name in the same folder is needed. Fetch the file again.",
          index_path, tensor, file_name);
    if (!by_name.count(file_name)) {
      const std::string path = in(directory, file_name);
      if (!file_exists(path))
        throw IoError("{}: is missing, {} lists it. Fetch the model again, all its shards.", path, index_path);
      add_shard(shards, std::make_unique<SafetensorsFile>(path));
      by_name[file_name] = shards.files.back().get();
    }
    const SafetensorsFile* file = by_name.at(file_name);
    if (file->find(tensor) == nullptr)
      throw FormatError("{}: tensor {} is missing, {} says that it is here. Fetch the model again.", file->path(),
                        tensor, index_path);
  }
  return shards;
}

Shards open_shards(const std::string& directory) {
  const std::string single = in(directory, kWeights), index = in(directory, kIndex);
  if (file_exists(single)) {
    Shards shards;
    shards.description = single;
    add_shard(shards, std::make_unique<SafetensorsFile>(single));
    return shards;
  }
  if (file_exists(index)) return open_indexed_shards(directory, index);
  const bool pickled =
      file_exists(in(directory, "pytorch_model.bin")) || file_exists(in(directory, "pytorch_model.bin.index.json"));
  throw IoError("{}: holds neither {} nor {}{}.", directory, kWeights, kIndex,
                pickled ? "; supported are safetensors, not pytorch_model.bin: load the model in transformers and call "
                          "save_pretrained"
                        : ". Fetch the model's weights");
}

// Tensors that transformers leaves unread too: buffers that old files carry along, and the copy of a tied embedding.
bool is_redundant(const std::string& name, const ModelConfig& config) {
  const bool no_own_head = config.tie_word_embeddings || !config.lm_head;
  return name.ends_with(".rotary_emb.inv_freq") || (no_own_head && name == "lm_head.weight");
}

void check_names(const Shards& shards, const std::string& directory, const ModelConfig& config,
                 const std::vector<ParameterSpec>& layout) {
  for (const ParameterSpec& spec : layout) {
    if (shards.holder.count(spec.name)) continue;
    std::string fix =
        "The weights are another model's or incomplete: pair them with their own config.json or fetch them again";
    if (spec.name == "lm_head.weight")
      fix = "If the output layer is the embedding, set tie_word_embeddings to true in config.json";
    throw FormatError("{}: tensor {} of shape [{}] is missing. {}.", shards.description, spec.name, join(spec.shape),
                      fix);
  }
  std::map<std::string, bool> wanted;
  for (const ParameterSpec& spec : layout) wanted[spec.name] = true;
  for (const auto& [name, file] : shards.holder) {
    if (wanted.count(name) || is_redundant(name, config)) continue;
    throw FormatError(
        "{}: tensor {} has no place in the model that {} describes (family {}, {} layers, {} biases). Pair the "
        "weights with their own config.json.",
        file->path(), name, in(directory, "config.json"), family_name(config.family), config.num_layers,
        config.qkv_bias ? "with" : "without");
  }
}

// Where the file holds an output layer of its own beside a tied embedding, the embedding wins (as in transformers): say
// so.
void warn_of_untied_head(const Shards& shards, const ModelConfig& config) {
  const auto head = shards.holder.find("lm_head.weight"), embedding = shards.holder.find("model.embed_tokens.weight");
  if (!config.tie_word_embeddings || !config.lm_head || head == shards.holder.end()) return;
  const SafetensorsEntry& a = *head->second->find(head->first);
  const SafetensorsEntry& b = *embedding->second->find(embedding->first);
  const bool same = a.dtype == b.dtype && a.shape == b.shape &&
                    std::memcmp(head->second->bytes(a), embedding->second->bytes(b), a.end - a.begin) == 0;
  if (!same)
    log_warning(
        "{}: lm_head.weight differs from the embedding and is not used, since config.json says tie_word_embeddings.",
        head->second->path());
}

at::ScalarType common_dtype(const Shards& shards, const std::vector<ParameterSpec>& layout) {
  std::optional<at::ScalarType> common;
  for (const ParameterSpec& spec : layout) {
    const SafetensorsFile* file = shards.holder.at(spec.name);
    const at::ScalarType dtype = file->find(spec.name)->dtype;
    if (!at::isFloatingType(dtype))
      throw FormatError(
          "{}: tensor {} has dtype {}, supported for weights are F32, BF16 and F16. Take the model in one of these.",
          file->path(), spec.name, safetensors_dtype_name(dtype));
    if (common && *common != dtype) {
      log_warning(
          "{}: the tensors are stored in several dtypes ({} and {}); exports will be in F32 unless "
          "checkpoint.export_dtype says otherwise.",
          shards.description, safetensors_dtype_name(*common), safetensors_dtype_name(dtype));
      return at::kFloat;
    }
    common = dtype;
  }
  return common.value_or(at::kFloat);
}

std::vector<SafetensorsShape> tensors_of(const ModelConfig& config) {
  std::vector<SafetensorsShape> tensors;
  for (ParameterSpec& spec : parameter_layout(config)) tensors.push_back({std::move(spec.name), std::move(spec.shape)});
  return tensors;
}

}  // namespace

ModelWeights open_model(const std::string& directory) {
  const ModelConfig config = load_model_config(directory);
  const std::vector<ParameterSpec> layout = parameter_layout(config);
  auto shards = std::make_shared<const Shards>(open_shards(directory));
  check_names(*shards, directory, config, layout);
  warn_of_untied_head(*shards, config);
  const at::ScalarType stored_dtype = common_dtype(*shards, layout);
  // every shape before the buffer: a wrong config.json must not ask for its memory first
  for (const ParameterSpec& spec : layout) {
    const SafetensorsFile* file = shards->holder.at(spec.name);
    const SafetensorsEntry& entry = *file->find(spec.name);
    if (entry.shape != spec.shape)
      throw FormatError("{}: tensor {} has shape [{}], {} makes it [{}]. Pair the weights with their own config.json.",
                        file->path(), spec.name, join(entry.shape), in(directory, "config.json"), join(spec.shape));
  }
  return {config, stored_dtype,
          [shards](const std::string& name, const at::Tensor& out) { shards->holder.at(name)->read_into(name, out); }};
}

LoadedModel load_model(const std::string& directory, at::ScalarType dtype) {
  return load(open_model(directory), dtype);
}

at::ScalarType stored_dtype(const std::string& directory) {
  return common_dtype(open_shards(directory), parameter_layout(load_model_config(directory)));
}

ModelFilesWriter::ModelFilesWriter(const std::string& folder, const ModelConfig& config, at::ScalarType dtype)
    : folder_(folder), config_(config), dtype_(dtype), weights_(in(folder, kWeights), tensors_of(config), dtype) {}

void ModelFilesWriter::write(const FlatParameters& some) {
  for (const ParameterSpec& spec : some.specs())
    if (weights_.expects(spec.name)) weights_.write(spec.name, some[spec.name]);
}

void ModelFilesWriter::finish() {
  weights_.finish();
  write_file_atomically(in(folder_, "generation_config.json"), to_generation_config_json(config_));
  write_file_atomically(in(folder_, "config.json"), to_config_json(config_, dtype_));
}

void write_model_files(const std::string& folder, const ModelConfig& config, const FlatParameters& parameters,
                       at::ScalarType dtype) {
  ModelFilesWriter writer(folder, config, dtype);
  writer.write(parameters);
  writer.finish();
}

}  // namespace temper
