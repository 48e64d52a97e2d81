// A model as the trainer uses it, be it policy, critic, reference, teacher or a reward model in the making: f32
// masters, their gradients, and the network that computes with their rounded, packed copies. A frozen model keeps the
// packed copy alone. Used from the train loop's thread.
#pragma once
#include <memory>

#include "model/hf_directory.h"
#include "model/logits_loss.h"
#include "model/token_logprobs.h"
#include "model/transformer.h"
#include "trainer/packing.h"

namespace temper {

class TrainerModel {
 public:
  static TrainerModel trainable(LoadedModel model, at::ScalarType compute);
  static TrainerModel frozen(LoadedModel model, at::ScalarType compute);

  const ModelConfig& config() const { return network_->config(); }
  const Transformer& network() const { return *network_; }
  // f32 masters and the sums of their gradients, one layout. Undefined in a frozen model.
  const FlatParameters& parameters() const { return parameters_; }
  const FlatParameters& gradients() const { return gradients_; }

  // The network computes with the masters as they are now, as version `version`.
  void publish(PolicyVersion version) { network_->load(parameters_, version); }
  void set_recompute(bool value) { network_->set_recompute(value); }

  // Hidden states [n, hidden_size] of the micro-batch's rows: one a target. Where gradients are enabled they reach the
  // weights through it.
  at::Tensor hidden(const MicroBatch& micro) const;

  // From these rows: log-probabilities [n] and entropies [n] of the targets; the value head's numbers [n].
  TokenLogprobs logprobs(const at::Tensor& hidden, const MicroBatch& micro, double temperature,
                         bool entropy_gradient = false) const {
    return token_logprobs(hidden, micro.packed.targets, network_->head(), temperature, entropy_gradient);
  }
  at::Tensor values(const at::Tensor& hidden) const { return network_->values(hidden); }

 private:
  TrainerModel(LoadedModel model, at::ScalarType compute, bool is_trainable);

  std::unique_ptr<Transformer> network_;  // at one address: the engine and autograd graphs hold it
  FlatParameters parameters_;
  FlatParameters gradients_;
};

// [N] f64 of every completion of the batch, in its order, in micro-batches of at most max_tokens rows, without
// gradient: log-probabilities at the temperature, or what the value head says before each token.
at::Tensor completion_logprobs(const TrainerModel& model, const StepBatch& batch, int64_t max_tokens,
                               double temperature);
at::Tensor completion_values(const TrainerModel& model, const StepBatch& batch, int64_t max_tokens);

}  // namespace temper
