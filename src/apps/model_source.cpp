#include "apps/model_source.h"

#include <ATen/Parallel.h>

#include "core/error.h"
#include "model/device.h"
#include "model/hf_directory.h"
#include "model/initialize.h"
#include "model/matmul.h"

namespace temper {

at::Device compute_device(Device device) {
  if (device == Device::kCpu || (device == Device::kAuto && !has_cuda())) return at::kCPU;
  if (!has_cuda())
    throw ConfigError(
        "device = cuda: this program finds no GPU: it is a build without CUDA, or the driver shows none. Build with "
        "scripts/build.sh cuda, look at nvidia-smi, or use device = auto.");
  return current_cuda_device();
}

ComputeType training_type(Dtype dtype, Device device) {
  ComputeType type;
  type.device = compute_device(device);
  const bool bf16 = dtype == Dtype::kBf16 || (dtype == Dtype::kAuto && (!type.device.is_cpu() || cpu_has_bf16()));
  type.compute = bf16 ? at::kBFloat16 : at::kFloat;
  return type;
}

ComputeType rollout_type(RolloutDtype dtype, const ComputeType& training) {
  ComputeType type = training;
  switch (dtype) {
    case RolloutDtype::kF32:
      type.compute = at::kFloat;
      break;
    case RolloutDtype::kBf16:
      type.compute = at::kBFloat16;
      break;
    case RolloutDtype::kInt8:
      type.weights = WeightFormat::kInt8;
      break;
    case RolloutDtype::kAuto:
      break;
  }
  return type;
}

std::string describe(at::Device device) {
  return device.is_cpu() ? format("cpu, {} threads", at::get_num_threads()) : device.str();
}

ModelSource load_model_source(const std::string& directory) {
  ModelSource source;
  source.weights = open_model(directory);
  source.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(directory));
  source.chat = ChatTemplate::load(directory);
  return source;
}

ModelShape load_model_shape(const std::string& directory, const ModelInit& init) {
  if (!directory.empty())
    return {load_model_config(directory), std::make_unique<Tokenizer>(Tokenizer::load(directory))};
  const bool bytes = init.tokenizer == "byte";
  ModelShape shape;
  shape.tokenizer = std::make_unique<Tokenizer>(bytes ? Tokenizer::bytes() : Tokenizer::load(init.tokenizer));
  const Tokenizer& tokenizer = *shape.tokenizer;
  if (init.vocab_size > 0 && init.vocab_size < tokenizer.vocab_size())
    throw ConfigError(
        "model.init.vocab_size = {}: the tokenizer has {} ids. Leave the key out, or give at least as many.",
        init.vocab_size, tokenizer.vocab_size());
  TokenizerFacts facts;
  facts.vocab_size = tokenizer.vocab_size();
  facts.eos_token_ids.assign(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  facts.bos_token_id = tokenizer.bos_id();
  facts.pad_token_id = tokenizer.pad_id();
  shape.config = new_model_config(init, facts);
  return shape;
}

ModelSource make_new_model(const ModelInit& init, int64_t seed) {
  ModelShape shape = load_model_shape("", init);
  ModelSource source;
  source.tokenizer = std::move(shape.tokenizer);
  if (init.tokenizer != "byte") source.chat = ChatTemplate::load(init.tokenizer);
  source.weights = random_weights(shape.config, static_cast<uint64_t>(seed));
  return source;
}

}  // namespace temper
