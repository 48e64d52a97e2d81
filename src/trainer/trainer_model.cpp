#include "trainer/trainer_model.h"

#include <ATen/ATen.h>

#include <functional>
#include <numeric>

#include "model/attention.h"

namespace temper {

TrainerModel::TrainerModel(LoadedModel model, at::ScalarType compute, bool is_trainable)
    : network_(std::make_unique<Transformer>(model.config, compute, is_trainable)) {
  network_->load(model.parameters, 0);
  if (!is_trainable) return;
  parameters_ = std::move(model.parameters);
  gradients_ = FlatParameters(parameters_.specs());
  network_->set_gradients(gradients_);
}

TrainerModel TrainerModel::trainable(LoadedModel model, at::ScalarType compute) {
  return TrainerModel(std::move(model), compute, true);
}
TrainerModel TrainerModel::frozen(LoadedModel model, at::ScalarType compute) {
  return TrainerModel(std::move(model), compute, false);
}

at::Tensor TrainerModel::hidden(const MicroBatch& micro) const {
  const auto attention = [this, segments = micro.packed.segments](int64_t, const at::Tensor& qkv) {
    return packed_attention_qkv(qkv, config().num_heads, config().num_kv_heads, segments, network_->attention_scale());
  };
  return network_->hidden_states(micro.packed.token_ids, micro.packed.positions, attention)
      .index_select(0, micro.packed.rows);
}

namespace {

// One number a token of every completion, from micro-batches.
at::Tensor for_each_token(const StepBatch& batch, int64_t max_tokens,
                          const std::function<at::Tensor(const MicroBatch&)>& compute) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> all(batch.sequences.size());
  std::iota(all.begin(), all.end(), 0);
  const std::vector<int64_t> offsets = batch.loss.offsets();
  at::Tensor numbers = at::empty({batch.num_completion_tokens}, at::kDouble);
  for (const MicroBatch& micro : pack_micro_batches(batch, all, {.max_tokens = max_tokens})) {
    const at::Tensor part = compute(micro);
    int64_t from = 0;
    for (const int64_t i : micro.completions) {
      const int64_t length = batch.loss.lengths[i];
      numbers.slice(0, offsets[i], offsets[i + 1]).copy_(part.slice(0, from, from + length));
      from += length;
    }
  }
  return numbers;
}

}  // namespace

at::Tensor completion_logprobs(const TrainerModel& model, const StepBatch& batch, int64_t max_tokens,
                               double temperature) {
  return for_each_token(batch, max_tokens, [&](const MicroBatch& micro) {
    return model.logprobs(model.hidden(micro), micro, temperature).logprobs;
  });
}

at::Tensor completion_values(const TrainerModel& model, const StepBatch& batch, int64_t max_tokens) {
  return for_each_token(batch, max_tokens, [&](const MicroBatch& micro) { return model.values(model.hidden(micro)); });
}

}  // namespace temper
