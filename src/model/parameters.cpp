#include "model/parameters.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace temper {
namespace {

constexpr int64_t kAlignment = 16;  // elements: a cache line in f32

int64_t round_up(int64_t value) { return (value + kAlignment - 1) / kAlignment * kAlignment; }

// Appends parameters; a block is a list of neighbours without a gap.
class LayoutBuilder {
 public:
  void block(std::vector<ParameterSpec> parameters) {
    end_ = round_up(end_);
    for (ParameterSpec& spec : parameters) {
      spec.offset = end_;
      end_ += spec.num_elements();
      layout_.push_back(std::move(spec));
    }
  }
  void one(std::string name, std::vector<int64_t> shape) { block({{std::move(name), std::move(shape), 0}}); }
  std::vector<ParameterSpec> take() { return std::move(layout_); }

 private:
  std::vector<ParameterSpec> layout_;
  int64_t end_ = 0;
};

}  // namespace

int64_t ParameterSpec::num_elements() const {
  int64_t product = 1;
  for (const int64_t size : shape) product *= size;
  return product;
}

std::vector<ParameterSpec> parameter_layout(const ModelConfig& config) {
  const int64_t hidden = config.hidden_size, inner = config.intermediate_size;
  const int64_t q = config.q_size(), kv = config.kv_size();
  LayoutBuilder layout;
  layout.one("model.embed_tokens.weight", {config.vocab_size, hidden});
  for (int64_t i = 0; i < config.num_layers; ++i) {
    const std::string layer = format("model.layers.{}.", i);
    const std::string attention = layer + "self_attn.", mlp = layer + "mlp.";
    layout.one(layer + "input_layernorm.weight", {hidden});
    layout.block({{attention + "q_proj.weight", {q, hidden}},
                  {attention + "k_proj.weight", {kv, hidden}},
                  {attention + "v_proj.weight", {kv, hidden}}});
    if (config.qkv_bias)
      layout.block(
          {{attention + "q_proj.bias", {q}}, {attention + "k_proj.bias", {kv}}, {attention + "v_proj.bias", {kv}}});
    if (config.qk_norm) {
      layout.one(attention + "q_norm.weight", {config.head_dim});
      layout.one(attention + "k_norm.weight", {config.head_dim});
    }
    layout.one(attention + "o_proj.weight", {hidden, q});
    if (config.o_bias) layout.one(attention + "o_proj.bias", {hidden});
    layout.one(layer + "post_attention_layernorm.weight", {hidden});
    layout.block({{mlp + "gate_proj.weight", {inner, hidden}}, {mlp + "up_proj.weight", {inner, hidden}}});
    if (config.mlp_bias) layout.block({{mlp + "gate_proj.bias", {inner}}, {mlp + "up_proj.bias", {inner}}});
    layout.one(mlp + "down_proj.weight", {hidden, inner});
    if (config.mlp_bias) layout.one(mlp + "down_proj.bias", {hidden});
  }
  layout.one("model.norm.weight", {hidden});
  if (config.lm_head && !config.tie_word_embeddings) layout.one("lm_head.weight", {config.vocab_size, hidden});
  if (config.value_head) layout.one("score.weight", {1, hidden});
  return layout.take();
}

int64_t flat_size(const std::vector<ParameterSpec>& layout) {
  return layout.empty() ? 0 : round_up(layout.back().offset + layout.back().num_elements());
}

FlatParameters::FlatParameters(const ModelConfig& config, at::ScalarType dtype, at::Device device)
    : FlatParameters(parameter_layout(config), dtype, device) {}

FlatParameters::FlatParameters(std::vector<ParameterSpec> layout, at::ScalarType dtype, at::Device device)
    : specs_(std::move(layout)),
      flat_(at::zeros({flat_size(specs_)}, at::TensorOptions().dtype(dtype).device(device))) {
  index_names();
}

FlatParameters::FlatParameters(std::vector<ParameterSpec> layout, at::Tensor flat)
    : specs_(std::move(layout)), flat_(std::move(flat)) {
  TEMPER_CHECK(flat_.dim() == 1 && flat_.is_contiguous() && flat_.numel() == flat_size(specs_),
               "a flat buffer of {} elements was given for a layout of {}", flat_.numel(), flat_size(specs_));
  index_names();
}

void FlatParameters::index_names() {
  index_.reserve(specs_.size());
  for (size_t i = 0; i < specs_.size(); ++i) index_.emplace(specs_[i].name, i);
}

bool FlatParameters::contains(std::string_view name) const { return index_.count(std::string(name)) > 0; }

size_t FlatParameters::index_of(std::string_view name) const {
  const auto found = index_.find(std::string(name));
  TEMPER_CHECK(found != index_.end(), "the model has no parameter {}", name);
  return found->second;
}

const ParameterSpec& FlatParameters::spec(std::string_view name) const { return specs_[index_of(name)]; }

at::Tensor FlatParameters::operator[](std::string_view name) const {
  const ParameterSpec& found = spec(name);
  return flat_.narrow(0, found.offset, found.num_elements()).view(found.shape);
}

at::Tensor FlatParameters::span(std::string_view first_name, std::string_view last_name, at::IntArrayRef shape) const {
  const size_t first = index_of(first_name), last = index_of(last_name);
  TEMPER_CHECK(first <= last, "{} comes after {}", first_name, last_name);
  const int64_t begin = specs_[first].offset;
  int64_t end = begin;
  for (size_t i = first; i <= last; ++i) {
    TEMPER_CHECK(specs_[i].offset == end, "{} does not touch its predecessor", specs_[i].name);
    end += specs_[i].num_elements();
  }
  return flat_.narrow(0, begin, end - begin).view(shape);
}

}  // namespace temper
