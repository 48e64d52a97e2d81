#include "trainer/trainer_model.h"

#include <ATen/ATen.h>

#include <functional>

#include "model/attention.h"
#include "model/tensor_parallel.h"

namespace temper {

TrainerModel::TrainerModel(const ModelWeights& weights, at::ScalarType compute, WeightFormat format, bool is_trainable,
                           at::Device device, const Ranks& ranks, Shard shard)
    : config_(weights.config), tensor_group_(ranks.tensor_group()) {
  TensorPart part;
  if (tensor_group_ != nullptr) {
    check_tensor_parallel(config_, tensor_group_->size(), "the model");
    part = {tensor_group_->rank(), tensor_group_->size()};
  }
  const ModelConfig here = part_config(config_, part);
  layout_ = parameter_layout(here);
  network_ = std::make_unique<Transformer>(here, compute, is_trainable, format, device);
  if (tensor_group_ != nullptr) network_->share_layers(config_, *tensor_group_);
  const auto read = [&](int64_t, const FlatParameters& some) { read_parameters(weights, some, part); };
  if (shard == Shard::kFull && ranks.shard_group().size() > 1) {
    shards_ = std::make_unique<ShardedWeights>(ranks.shard_group(), *network_, is_trainable, read);
    return;
  }
  if (is_trainable) {
    parameters_ = FlatParameters(layout_, at::kFloat, device);
    read_parameters(weights, parameters_, part);
    network_->load(parameters_, 0);
    gradients_ = FlatParameters(layout_, at::kFloat, device);
    network_->set_gradients(gradients_);
    return;
  }
  for (int64_t block = -1; block < config_.num_layers; ++block) {
    const FlatParameters some(segment_layout(here, block));
    read_parameters(weights, some, part);
    block < 0 ? network_->load_ends(some, 0) : network_->load_block(block, some);
  }
}

TrainerModel TrainerModel::trainable(const ModelWeights& weights, at::ScalarType compute, Shard shard,
                                     const Ranks& ranks, at::Device device) {
  return TrainerModel(weights, compute, WeightFormat::kCompute, true, device, ranks, shard);
}

TrainerModel TrainerModel::frozen(const ModelWeights& weights, at::ScalarType compute, WeightFormat format,
                                  at::Device device, const Ranks& ranks, Shard shard) {
  return TrainerModel(weights, compute, format, false, device, ranks, shard);
}

void TrainerModel::separate_rollouts(at::ScalarType compute, WeightFormat weights) {
  rollout_network_ = std::make_unique<Transformer>(config(), compute, /*trainable=*/false, weights, network_->device());
}

void TrainerModel::publish(PolicyVersion version) {
  Visit copy;
  if (rollout_network_ || publisher_.copy)
    copy = joining([&](int64_t block, const FlatParameters& masters) { hand_out(block, masters, version); });
  if (shards_) {
    shards_->publish(version, copy);
  } else {
    network_->load(parameters_, version);
    for (int64_t block = -1; copy && block < config().num_layers; ++block) copy(block, parameters_);
  }
  if (publisher_.publish) publisher_.publish(version);
}

// One block's masters, or (-1) the ends', to whatever rollouts are made with.
void TrainerModel::hand_out(int64_t block, const FlatParameters& masters, PolicyVersion version) const {
  if (publisher_.copy) publisher_.copy(block, masters);
  if (!rollout_network_) return;
  if (block < 0)
    rollout_network_->load_ends(masters, version);
  else
    rollout_network_->load_block(block, masters);
}

TrainerModel::Visit TrainerModel::joining(const Visit& visit) const {
  if (tensor_group_ == nullptr) return visit;
  return [this, visit](int64_t block, const FlatParameters& part) {
    visit(block, join_parts(segment_layout(config_, block), part, *tensor_group_, network_->device()));
  };
}

void TrainerModel::visit_masters(const Visit& visit) const {
  const Visit of_whole = joining(visit);
  if (shards_) return shards_->visit(of_whole);
  for (int64_t block = -1; block < config().num_layers; ++block) of_whole(block, parameters_);
}

void TrainerModel::refresh() {
  if (shards_)
    shards_->publish(network_->version(), {});
  else
    network_->load(parameters_, network_->version());
}

ShardPlan TrainerModel::shard_plan(Shard shard, const Ranks& ranks) const {
  const Ranks group = ranks.shard_group();
  return {layout_, shard, group.rank(), group.size()};
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
