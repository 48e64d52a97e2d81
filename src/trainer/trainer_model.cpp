#include "trainer/trainer_model.h"

#include <ATen/ATen.h>

#include <functional>

#include "model/attention.h"
#include "model/tensor_parallel.h"

namespace temper {

namespace {

LoadedModel part_of(LoadedModel model, const Communicator* group) {
  if (group == nullptr) return model;
  check_tensor_parallel(model.config, group->size(), "the model");
  const TensorPart part{group->rank(), group->size()};
  return {part_config(model.config, part), part_parameters(model.config, model.parameters, part), model.stored_dtype};
}

}  // namespace

TrainerModel::TrainerModel(LoadedModel model, at::ScalarType compute, WeightFormat weights, bool is_trainable,
                           at::Device device, Communicator* tensor_group)
    : config_(model.config), tensor_group_(tensor_group) {
  model = part_of(std::move(model), tensor_group_);
  network_ = std::make_unique<Transformer>(model.config, compute, is_trainable, weights, device);
  if (tensor_group_ != nullptr) network_->share_layers(config_, *tensor_group_);
  if (is_trainable) parameters_ = model.parameters.to(device);
  network_->load(is_trainable ? parameters_ : model.parameters, 0);
  if (!is_trainable) return;
  gradients_ = FlatParameters(parameters_.specs(), at::kFloat, device);
  network_->set_gradients(gradients_);
}

TrainerModel TrainerModel::trainable(LoadedModel model, at::ScalarType compute, Shard shard, const Ranks& ranks,
                                     at::Device device) {
  TrainerModel made(std::move(model), compute, WeightFormat::kCompute, true, device, ranks.tensor_group());
  if (shard != Shard::kFull || ranks.shard_group().size() == 1) return made;
  made.shards_ =
      std::make_unique<ShardedWeights>(ranks.shard_group(), made.parameters_, made.gradients_, *made.network_);
  for (int64_t block = 0; block < made.config().num_layers; ++block) made.network_->drop_block(block);
  return made;
}

TrainerModel TrainerModel::frozen(LoadedModel model, at::ScalarType compute, WeightFormat weights, at::Device device,
                                  const Ranks& ranks) {
  return TrainerModel(std::move(model), compute, weights, false, device, ranks.tensor_group());
}

void TrainerModel::separate_rollouts(at::ScalarType compute, WeightFormat weights) {
  rollout_network_ = std::make_unique<Transformer>(config(), compute, /*trainable=*/false, weights, network_->device());
}

void TrainerModel::publish(PolicyVersion version) {
  const auto copy = [this, version](int64_t block) { hand_out(block, version); };
  const bool copies = rollout_network_ || publisher_.copy;
  if (shards_) {
    shards_->publish(version, copies ? copy : ShardedWeights::Visit());
  } else {
    network_->load(parameters_, version);
    for (int64_t block = -1; copies && block < config().num_layers; ++block) copy(block);
  }
  if (publisher_.publish) publisher_.publish(version);
}

// One block, or (-1) the ends, of the masters as they are here, to whatever rollouts are made with; with shared layers
// the group's parts together.
void TrainerModel::hand_out(int64_t block, PolicyVersion version) {
  FlatParameters whole;
  if (tensor_group_ != nullptr)
    whole = join_parts(segment_layout(config_, block), parameters_, *tensor_group_, network_->device());
  const FlatParameters& masters = tensor_group_ != nullptr ? whole : parameters_;
  if (publisher_.copy) publisher_.copy(block, masters);
  if (!rollout_network_) return;
  if (block < 0)
    rollout_network_->load_ends(masters, version);
  else
    rollout_network_->load_block(block, masters);
}

void TrainerModel::refresh() {
  if (shards_)
    shards_->publish(network_->version(), {});
  else
    network_->load(parameters_, network_->version());
}

ShardPlan TrainerModel::shard_plan(Shard shard, const Ranks& ranks) const {
  const Ranks group = ranks.shard_group();
  return {parameters_.specs(), shard, group.rank(), group.size()};
}

std::vector<FlatPart> TrainerModel::own_parts() const {
  const at::Tensor& flat = parameters_.flat();
  if (!shards_) return {{0, flat}};
  std::vector<FlatPart> parts;
  for (const FlatRange& range : shards_->plan().owned())
    parts.push_back({range.begin, flat.narrow(0, range.begin, range.size())});
  return parts;
}

std::shared_ptr<void> TrainerModel::gathered() const {
  if (!shards_) return nullptr;
  shards_->gather();
  return {nullptr, [shards = shards_.get()](void*) { shards->release(); }};
}

FlatParameters TrainerModel::joined() const {
  return tensor_group_ == nullptr ? parameters_ : join_model(config_, parameters_, *tensor_group_, at::kCPU);
}

at::Tensor TrainerModel::hidden(const MicroBatch& micro) const {
  const auto attention = [this, segments = micro.packed.segments](int64_t, const at::Tensor& qkv) {
    const ModelConfig& here = network_->config();
    return packed_attention_qkv(qkv, here.num_heads, here.num_kv_heads, segments, network_->attention_scale());
  };
  return network_->hidden_states(micro.packed.token_ids, micro.packed.positions, attention)
      .index_select(0, micro.packed.rows.to(network_->device()));
}

namespace {

// One number a token of every completion, from micro-batches.
at::Tensor for_each_token(const TrainerModel& model, const StepBatch& batch, const std::vector<int64_t>& completions,
                          int64_t max_tokens, const Ranks& ranks,
                          const std::function<at::Tensor(const MicroBatch&)>& compute) {
  const at::NoGradGuard no_grad;
  const std::vector<int64_t> offsets = batch.loss.offsets();
  const at::Tensor numbers = at::zeros({batch.num_completion_tokens}, at::kDouble);
  const std::vector<int64_t> own = ranks.own(batch, completions, /*whole_groups=*/false);
  const std::vector<MicroBatch> micro_batches = pack_micro_batches(batch, own, {.max_tokens = max_tokens});
  const int64_t passes = model.shards() == nullptr ? 0 : ranks.max(static_cast<int64_t>(micro_batches.size()));
  for (int64_t idle = static_cast<int64_t>(micro_batches.size()); idle < passes; ++idle) model.shards()->idle_forward();
  for (const MicroBatch& micro : micro_batches) {
    const at::Tensor part = compute(micro);
    int64_t from = 0;
    for (const int64_t i : micro.completions) {
      const int64_t length = batch.loss.lengths[i];
      numbers.slice(0, offsets[i], offsets[i + 1]).copy_(part.slice(0, from, from + length));
      from += length;
    }
  }
  ranks.fill_in(numbers);
  return numbers;
}

}  // namespace

at::Tensor completion_logprobs(const TrainerModel& model, const StepBatch& batch,
                               const std::vector<int64_t>& completions, int64_t max_tokens, double temperature,
                               const Ranks& ranks) {
  return for_each_token(model, batch, completions, max_tokens, ranks, [&](const MicroBatch& micro) {
    return model.logprobs(model.hidden(micro), micro, temperature).logprobs;
  });
}

at::Tensor completion_values(const TrainerModel& model, const StepBatch& batch, const std::vector<int64_t>& completions,
                             int64_t max_tokens, const Ranks& ranks) {
  return for_each_token(model, batch, completions, max_tokens, ranks,
                        [&](const MicroBatch& micro) { return model.values(model.hidden(micro)); });
}

}  // namespace temper
