// All parameters of a model in one flat buffer, in Hugging Face order and names. So the optimiser, the gradient norm
// and the checkpoint are one loop over one tensor, a gradient buffer is the same object in the same layout, and the
// weights that are multiplied together (q, k, v; gate, up) lie next to each other: their fused product is a plain view.
// Everything is a view of flat(); no method copies. Not synchronised: readers and a writer take turns.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>
#include <string_view>
#include <unordered_map>
#include <vector>

#include "model/model_config.h"

namespace temper {

struct ParameterSpec {
  std::string name;            // as in the safetensors file: model.layers.0.self_attn.q_proj.weight
  std::vector<int64_t> shape;  // [out, in] for weights
  int64_t offset = 0;          // in elements of the flat buffer
  int64_t num_elements() const;
};

// model.embed_tokens.weight; for each layer input_layernorm, self_attn.{q,k,v}_proj weights, then their biases, q_norm,
// k_norm, o_proj, post_attention_layernorm, mlp.{gate,up}_proj weights, then their biases, down_proj; model.norm;
// lm_head.weight unless tied or without such a head; score.weight where there is a value head. Neighbours that are
// fused have no gap; each other tensor starts at a multiple of 16 elements.
std::vector<ParameterSpec> parameter_layout(const ModelConfig& config);
// Elements of the flat buffer: the end of the last parameter, rounded up to 16.
int64_t flat_size(const std::vector<ParameterSpec>& layout);

class FlatParameters {
 public:
  FlatParameters() = default;
  // All zero, the gaps too (they stay zero: no view reaches them).
  explicit FlatParameters(const ModelConfig& config, at::ScalarType dtype = at::kFloat, at::Device device = at::kCPU);
  explicit FlatParameters(std::vector<ParameterSpec> layout, at::ScalarType dtype = at::kFloat,
                          at::Device device = at::kCPU);
  // The same layout over a buffer that somebody else made, [flat_size(layout)].
  FlatParameters(std::vector<ParameterSpec> layout, at::Tensor flat);

  // The same on another device; itself where it is there.
  FlatParameters to(at::Device device) const { return {specs_, flat_.to(device)}; }

  const at::Tensor& flat() const { return flat_; }
  const std::vector<ParameterSpec>& specs() const { return specs_; }
  bool contains(std::string_view name) const;
  const ParameterSpec& spec(std::string_view name) const;
  at::Tensor operator[](std::string_view name) const;  // a view in the parameter's shape
  // One view over neighbours without a gap: span("…q_proj.weight", "…v_proj.weight", {q + k + v rows, hidden}).
  at::Tensor span(std::string_view first_name, std::string_view last_name, at::IntArrayRef shape) const;

 private:
  size_t index_of(std::string_view name) const;
  void index_names();

  std::vector<ParameterSpec> specs_;
  std::unordered_map<std::string, size_t> index_;
  at::Tensor flat_;  // [flat_size]
};

}  // namespace temper
