#include "apps/model_source.h"

#include "core/error.h"
#include "model/initialize.h"
#include "model/matmul.h"

namespace temper {

at::ScalarType compute_dtype(Dtype dtype) {
  if (dtype == Dtype::kAuto) return cpu_has_bf16() ? at::kBFloat16 : at::kFloat;
  return dtype == Dtype::kBf16 ? at::kBFloat16 : at::kFloat;
}

ComputeType rollout_type(RolloutDtype dtype, Dtype run) {
  switch (dtype) {
    case RolloutDtype::kF32:
      return {at::kFloat, WeightFormat::kCompute};
    case RolloutDtype::kBf16:
      return {at::kBFloat16, WeightFormat::kCompute};
    case RolloutDtype::kInt8:
      return {compute_dtype(run), WeightFormat::kInt8};
    case RolloutDtype::kAuto:
      break;
  }
  return {compute_dtype(run), WeightFormat::kCompute};
}

ModelSource load_model_source(const std::string& directory) {
  ModelSource source;
  source.model = load_model(directory);
  source.tokenizer = std::make_unique<Tokenizer>(Tokenizer::load(directory));
  source.chat = ChatTemplate::load(directory);
  return source;
}

ModelSource make_new_model(const ModelInit& init, int64_t seed) {
  ModelSource source;
  const bool bytes = init.tokenizer == "byte";
  source.tokenizer = std::make_unique<Tokenizer>(bytes ? Tokenizer::bytes() : Tokenizer::load(init.tokenizer));
  if (!bytes) source.chat = ChatTemplate::load(init.tokenizer);
  const Tokenizer& tokenizer = *source.tokenizer;
  if (init.vocab_size > 0 && init.vocab_size < tokenizer.vocab_size())
    throw ConfigError(
        "model.init.vocab_size = {}: the tokenizer has {} ids. Leave the key out, or give at least as many.",
        init.vocab_size, tokenizer.vocab_size());
  TokenizerFacts facts;
  facts.vocab_size = tokenizer.vocab_size();
  facts.eos_token_ids.assign(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
  facts.bos_token_id = tokenizer.bos_id();
  facts.pad_token_id = tokenizer.pad_id();
  source.model.config = new_model_config(init, facts);
  source.model.parameters = FlatParameters(source.model.config);
  initialize_parameters(source.model.config, static_cast<uint64_t>(seed), source.model.parameters);
  return source;
}

}  // namespace temper
