#include "trainer/policy.h"

#include <ATen/ATen.h>

#include <numeric>

#include "model/attention.h"

namespace temper {

Policy::Policy(LoadedModel model, at::ScalarType compute, bool is_trainable)
    : network_(std::make_unique<Transformer>(model.config, compute, is_trainable)) {
  network_->load(model.parameters, 0);
  if (!is_trainable) return;
  parameters_ = std::move(model.parameters);
  gradients_ = FlatParameters(parameters_.specs());
  network_->set_gradients(gradients_);
}

Policy Policy::trainable(LoadedModel model, at::ScalarType compute) { return Policy(std::move(model), compute, true); }
Policy Policy::frozen(LoadedModel model, at::ScalarType compute) { return Policy(std::move(model), compute, false); }

TokenLogprobs Policy::logprobs(const MicroBatch& micro, double temperature) const {
  const auto attention = [&](int64_t, const at::Tensor& qkv) {
    return packed_attention_qkv(qkv, config().num_heads, config().num_kv_heads, micro.segments,
                                network_->attention_scale());
  };
  const at::Tensor hidden = network_->hidden_states(micro.token_ids, micro.positions, attention);
  return token_logprobs(hidden.index_select(0, micro.rows), micro.targets, network_->head(), temperature);
}

at::Tensor completion_logprobs(const Policy& policy, const StepBatch& batch, int64_t max_tokens, double temperature) {
  at::NoGradGuard no_grad;
  std::vector<int64_t> all(batch.sequences.size());
  std::iota(all.begin(), all.end(), 0);
  const std::vector<int64_t> offsets = batch.loss.offsets();
  at::Tensor logprobs = at::empty({batch.num_completion_tokens}, at::kDouble);
  for (const MicroBatch& micro : pack_micro_batches(batch, all, max_tokens)) {
    const at::Tensor part = policy.logprobs(micro, temperature).logprobs;
    int64_t from = 0;
    for (const int64_t i : micro.completions) {
      const int64_t length = batch.loss.lengths[i];
      logprobs.slice(0, offsets[i], offsets[i + 1]).copy_(part.slice(0, from, from + length));
      from += length;
    }
  }
  return logprobs;
}

}  // namespace temper
