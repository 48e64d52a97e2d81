#include "model/model_weights.h"

#include <ATen/ATen.h>

#include <memory>
#include <unordered_map>

#include "core/error.h"
#include "core/hash.h"

namespace temper {

ModelWeights weights_of(LoadedModel model) {
  ModelWeights weights{model.config, model.stored_dtype, {}};
  weights.read = [parameters = std::move(model.parameters)](const std::string& name, const at::Tensor& out) {
    out.copy_(parameters[name]);
  };
  return weights;
}

LoadedModel load(const ModelWeights& weights, at::ScalarType dtype) {
  LoadedModel model{weights.config, FlatParameters(weights.config, dtype), weights.stored_dtype};
  read_parameters(weights, model.parameters);
  return model;
}

void read_parameters(const ModelWeights& weights, const FlatParameters& out, const TensorPart& part) {
  const at::NoGradGuard no_grad;
  std::unordered_map<std::string, std::vector<int64_t>> whole_shapes;
  for (ParameterSpec& spec : parameter_layout(weights.config)) whole_shapes[spec.name] = std::move(spec.shape);
  for (const ParameterSpec& spec : out.specs()) {
    const at::Tensor target = out[spec.name];
    const auto dimension = part.size > 1 ? split_dimension(spec.name) : std::nullopt;
    if (!dimension && target.is_cpu()) {
      weights.read(spec.name, target);
      continue;
    }
    const at::Tensor whole = at::empty(whole_shapes.at(spec.name), target.options().device(at::kCPU));
    weights.read(spec.name, whole);
    target.copy_(dimension ? part.of(whole, *dimension) : whole);
  }
}

std::string hash_of(const ModelWeights& weights) {
  Xxh3Stream hash;
  const std::vector<ParameterSpec> layout = parameter_layout(weights.config);
  int64_t hashed = 0;  // elements
  const auto gap_until = [&](int64_t end) {
    const std::vector<float> zeros(static_cast<size_t>(end - hashed), 0.0F);
    hash.update(zeros.data(), zeros.size() * sizeof(float));
    hashed = end;
  };
  for (const ParameterSpec& spec : layout) {
    gap_until(spec.offset);
    const at::Tensor values = at::empty(spec.shape, at::kFloat);
    weights.read(spec.name, values);
    hash.update(values.const_data_ptr(), values.nbytes());
    hashed += values.numel();
  }
  gap_until(flat_size(layout));
  return hash.digest_hex();
}

ModelWeights with_heads(ModelWeights source, bool lm_head, bool value_head) {
  TEMPER_CHECK(!lm_head || source.config.lm_head, "the model has no head of a language model to keep");
  ModelWeights model{source.config, source.stored_dtype, {}};
  model.config.lm_head = lm_head;
  model.config.value_head = value_head;
  model.read = [read = std::move(source.read), has_values = source.config.value_head](const std::string& name,
                                                                                      const at::Tensor& out) {
    if (name == "score.weight" && !has_values)
      out.zero_();
    else
      read(name, out);
  };
  return model;
}

LoadedModel with_heads(const LoadedModel& source, bool lm_head, bool value_head) {
  return load(with_heads(weights_of(source), lm_head, value_head), source.parameters.flat().scalar_type());
}

}  // namespace temper
