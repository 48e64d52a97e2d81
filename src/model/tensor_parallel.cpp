#include "model/tensor_parallel.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"

namespace temper {
namespace {

bool ends_with_any(std::string_view name, std::initializer_list<std::string_view> endings) {
  return std::any_of(endings.begin(), endings.end(), [name](std::string_view end) { return name.ends_with(end); });
}

std::vector<int64_t> part_shape(const ParameterSpec& whole, const TensorPart& part) {
  std::vector<int64_t> shape = whole.shape;
  if (const auto dimension = split_dimension(whole.name))
    shape[static_cast<size_t>(*dimension)] = part.length(shape[static_cast<size_t>(*dimension)]);
  return shape;
}

int64_t product(const std::vector<int64_t>& shape) {
  int64_t elements = 1;
  for (const int64_t size : shape) elements *= size;
  return elements;
}

// A parameter on its way from all ranks: parts may differ in size, what travels does not.
struct Incoming {
  const ParameterSpec* spec;
  int64_t dimension, slot;  // elements a rank
  at::Tensor sent, received;
  CommHandle handle;
};

Incoming send_part(const ParameterSpec& spec, int64_t dimension, const at::Tensor& part, Communicator& ranks) {
  Incoming incoming{&spec, dimension, 0, {}, {}, {}};
  for (int r = 0; r < ranks.size(); ++r)
    incoming.slot = std::max(incoming.slot, product(part_shape(spec, {r, ranks.size()})));
  const at::Tensor flat = part.reshape({-1});
  incoming.sent = flat.numel() == incoming.slot ? flat : at::constant_pad_nd(flat, {0, incoming.slot - flat.numel()});
  incoming.received = at::empty({incoming.slot * ranks.size()}, part.options());
  incoming.handle = ranks.all_gather("parts of the weights", incoming.sent, incoming.received);
  return incoming;
}

void put_together(Incoming& incoming, int num_ranks, const at::Tensor& whole) {
  incoming.handle.wait();
  for (int r = 0; r < num_ranks; ++r) {
    const TensorPart part{r, num_ranks};
    const std::vector<int64_t> shape = part_shape(*incoming.spec, part);
    part.of(whole, incoming.dimension)
        .copy_(incoming.received.narrow(0, r * incoming.slot, product(shape)).view(shape));
  }
}

}  // namespace

std::optional<int64_t> split_dimension(std::string_view name) {
  if (ends_with_any(name, {"o_proj.weight", "down_proj.weight"})) return 1;
  if (ends_with_any(name, {"embed_tokens.weight", "lm_head.weight"})) return 0;
  for (const std::string_view layer : {"q_proj.", "k_proj.", "v_proj.", "gate_proj.", "up_proj."})
    if (name.find(layer) != std::string_view::npos) return 0;
  return std::nullopt;
}

void check_tensor_parallel(const ModelConfig& whole, int64_t num_ranks, std::string_view what) {
  if (whole.num_kv_heads % num_ranks != 0)
    throw ConfigError(
        "train.tensor_parallel = {}: {} has {} key/value heads (num_key_value_heads), which so many ranks cannot share "
        "evenly. Give a divisor of {}.",
        num_ranks, what, whole.num_kv_heads, whole.num_kv_heads);
  if (std::min(whole.intermediate_size, whole.vocab_size) < num_ranks)
    throw ConfigError(
        "train.tensor_parallel = {}: {} has an intermediate_size of {} and {} tokens in its vocabulary, fewer than "
        "ranks. Lower it.",
        num_ranks, what, whole.intermediate_size, whole.vocab_size);
}

ModelConfig part_config(const ModelConfig& whole, const TensorPart& part) {
  ModelConfig config = whole;
  config.num_heads = part.length(whole.num_heads);
  config.num_kv_heads = part.length(whole.num_kv_heads);
  config.intermediate_size = part.length(whole.intermediate_size);
  config.vocab_size = part.length(whole.vocab_size);
  return config;
}

std::vector<ParameterSpec> segment_layout(const ModelConfig& config, int64_t block) {
  ModelConfig ends = config;
  ends.num_layers = 0;
  if (block < 0) return parameter_layout(ends);
  std::vector<ParameterSpec> layout;
  const std::string prefix = format("model.layers.{}.", block);
  for (ParameterSpec& spec : parameter_layout(config))
    if (spec.name.starts_with(prefix)) layout.push_back(std::move(spec));
  const int64_t begin = layout.front().offset;
  for (ParameterSpec& spec : layout) spec.offset -= begin;
  return layout;
}

FlatParameters join_parts(const std::vector<ParameterSpec>& layout, const FlatParameters& part, Communicator& ranks,
                          at::Device device) {
  FlatParameters whole(layout, part.flat().scalar_type(), device);
  std::vector<Incoming> incoming;
  for (const ParameterSpec& spec : whole.specs()) {
    if (const auto dimension = split_dimension(spec.name))
      incoming.push_back(send_part(spec, *dimension, part[spec.name], ranks));
    else
      whole[spec.name].copy_(part[spec.name]);
  }
  for (Incoming& parameter : incoming) put_together(parameter, ranks.size(), whole[parameter.spec->name]);
  return whole;
}

}  // namespace temper
