// A model as the trainer uses it: f32 masters, their gradients, and the network that computes with their rounded,
// packed copies. A frozen policy (reference, teacher) keeps the packed copy alone. Used from the train loop's thread.
#pragma once
#include <memory>

#include "model/hf_directory.h"
#include "model/token_logprobs.h"
#include "model/transformer.h"
#include "trainer/packing.h"

namespace temper {

class Policy {
 public:
  static Policy trainable(LoadedModel model, at::ScalarType compute);
  static Policy frozen(LoadedModel model, at::ScalarType compute);

  const ModelConfig& config() const { return network_->config(); }
  const Transformer& network() const { return *network_; }
  // f32 masters and the sums of their gradients, one layout. Undefined in a frozen policy.
  const FlatParameters& parameters() const { return parameters_; }
  const FlatParameters& gradients() const { return gradients_; }

  // The network computes with the masters as they are now, as version `version`.
  void publish(PolicyVersion version) { network_->load(parameters_, version); }

  // Log-probabilities [n] and entropies [n] of the micro-batch's targets. Differentiable where gradients are enabled.
  TokenLogprobs logprobs(const MicroBatch& micro, double temperature) const;

 private:
  Policy(LoadedModel model, at::ScalarType compute, bool is_trainable);

  std::unique_ptr<Transformer> network_;  // at one address: the engine and autograd graphs hold it
  FlatParameters parameters_;
  FlatParameters gradients_;
};

// [N] f64 of every completion of the batch, in its order, in micro-batches of at most max_tokens rows. Without
// gradient.
at::Tensor completion_logprobs(const Policy& policy, const StepBatch& batch, int64_t max_tokens, double temperature);

}  // namespace temper
