// A model as the trainer uses it, be it policy, critic, reference, teacher or a reward model in the making: f32
// masters, their gradients, and the network that computes with their rounded, packed copies, on one device. A frozen
// model keeps the packed copy alone. Rollouts compute with the same network, or with one of another type beside it.
// Used from the train loop's thread.
#pragma once
#include <functional>
#include <memory>

#include "model/logits_loss.h"
#include "model/model_weights.h"
#include "model/token_logprobs.h"
#include "model/transformer.h"
#include "trainer/packing.h"
#include "trainer/ranks.h"
#include "trainer/sharded_weights.h"

namespace temper {

class TrainerModel {
 public:
  // Shard::kFull: weights and gradients lie with their owners among the ranks (sharded_weights.h). Where ranks share
  // layers (ranks.tensor_group()), this one keeps its part of the model (model/tensor_parallel.h), and the ranks of the
  // group make the same calls. In both cases rollouts need a network of their own, and no rank ever has the whole model
  // in memory.
  static TrainerModel trainable(const ModelWeights& weights, at::ScalarType compute, Shard shard = Shard::kNone,
                                const Ranks& ranks = {}, at::Device device = at::kCPU);
  static TrainerModel frozen(const ModelWeights& weights, at::ScalarType compute,
                             WeightFormat format = WeightFormat::kCompute, at::Device device = at::kCPU,
                             const Ranks& ranks = {}, Shard shard = Shard::kNone);

  const ModelConfig& config() const { return config_; }  // of the whole model
  const Transformer& network() const { return *network_; }
  // Of what is here: all of the model, or a tensor-parallel rank's part.
  const std::vector<ParameterSpec>& layout() const { return layout_; }
  // f32 masters and the sums of their gradients. Undefined in a frozen model and where they lie with their owners.
  const FlatParameters& parameters() const { return parameters_; }
  const FlatParameters& gradients() const { return gradients_; }
  // The same in any trainable model: all of the flat buffer, or what this rank owns of it.
  std::vector<FlatPart> own_parameters() const { return shards_ ? shards_->weights() : whole(parameters_); }
  std::vector<FlatPart> own_gradients() const { return shards_ ? shards_->gradients() : whole(gradients_); }

  // From the next publish() on, rollouts have a network of their own, the whole model. REQUIRES: trainable.
  void separate_rollouts(at::ScalarType compute, WeightFormat weights);
  // Training's network cannot generate.
  bool needs_separate_rollouts() const { return shards_ != nullptr || tensor_group_ != nullptr; }
  const Transformer& rollout_network() const { return rollout_network_ ? *rollout_network_ : *network_; }

  // Who has rollouts elsewhere: publish() hands it each block's masters (-1: the ends), the whole model's, while they
  // are all here, then the version. Set before a publish() that all ranks make.
  using Visit = std::function<void(int64_t block, const FlatParameters& masters)>;
  struct Publisher {
    Visit copy;
    std::function<void(PolicyVersion version)> publish;
  };
  void set_publisher(Publisher publisher) { publisher_ = std::move(publisher); }

  // Training and rollouts compute with the masters as they are now, as version `version`.
  void publish(PolicyVersion version);
  // Training alone does: between the updates of one step.
  void refresh();

  // Null unless sharded. Every rank makes the same number of passes: those without work idle through theirs.
  ShardedWeights* shards() const { return shards_.get(); }
  // What this rank's parameters and gradients hold, and the optimiser updates.
  ShardPlan shard_plan(Shard shard, const Ranks& ranks) const;
  // A collective call: each block's masters, the whole model's. REQUIRES: trainable.
  void visit_masters(const Visit& visit) const;
  void set_recompute(bool value) { network_->set_recompute(value); }
  void set_hooks(Transformer::BlockHook block, Transformer::LookupHook lookup) const {
    network_->set_block_hook(std::move(block));
    network_->set_lookup_hook(std::move(lookup));
  }

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
  TrainerModel(const ModelWeights& weights, at::ScalarType compute, WeightFormat format, bool is_trainable,
               at::Device device, const Ranks& ranks, Shard shard);
  void hand_out(int64_t block, const FlatParameters& masters, PolicyVersion version) const;
  // Visited with what is here, `visit` sees the whole model's.
  Visit joining(const Visit& visit) const;
  static std::vector<FlatPart> whole(const FlatParameters& parameters) { return {{0, parameters.flat()}}; }

  ModelConfig config_;
  Communicator* tensor_group_;            // of the ranks that share the layers; null: nobody does
  std::unique_ptr<Transformer> network_;  // at one address: the engine and autograd graphs hold it
  std::unique_ptr<Transformer> rollout_network_;
  std::vector<ParameterSpec> layout_;
  FlatParameters parameters_;
  FlatParameters gradients_;
  std::unique_ptr<ShardedWeights> shards_;
  Publisher publisher_;  // empty: rollouts are made here
};

// [N] f64: of the given completions of the batch, each at its place, zero elsewhere. In micro-batches of at most
// max_tokens rows, without gradient: log-probabilities at the temperature, or what the value head says before each
// token. The ranks share the completions out among them, and all get all.
at::Tensor completion_logprobs(const TrainerModel& model, const StepBatch& batch,
                               const std::vector<int64_t>& completions, int64_t max_tokens, double temperature,
                               const Ranks& ranks);
at::Tensor completion_values(const TrainerModel& model, const StepBatch& batch, const std::vector<int64_t>& completions,
                             int64_t max_tokens, const Ranks& ranks);

}  // namespace temper
