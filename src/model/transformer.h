// The decoder-only transformer of the Llama, Qwen2 and Qwen3 families, once: training passes attention over a packed
// batch, the engine passes attention over its paged cache, everything else is the same code on the same packed weights.
// The residual stream and the logits are f32; products and attention take the compute dtype and accumulate in f32.
// Const methods may run in several threads at once; load() and set_gradients() must not run beside them.
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>
#include <utility>
#include <vector>

#include "comm/communicator.h"
#include "core/rollout_types.h"
#include "model/linear.h"
#include "model/model_config.h"
#include "model/parameters.h"
#include "model/rope.h"

namespace temper {

class Transformer {
 public:
  // qkv [T, H + 2 KV, D] of one layer in the compute dtype (heads of q, then of k, then of v; q and k rotated) → [T, H,
  // D]. With set_recompute it is called again in the backward pass, from a copy.
  using Attention = std::function<at::Tensor(int64_t layer, const at::Tensor& qkv)>;

  // compute: kFloat or kBFloat16. trainable: also packs what the backward products need. weights: of the layers and the
  // head; the embedding stays in the compute dtype. device: of everything that it holds and computes.
  Transformer(ModelConfig config, at::ScalarType compute, bool trainable, WeightFormat weights = WeightFormat::kCompute,
              at::Device device = at::kCPU);

  // This model is one rank's part of a larger one (tensor_parallel.h), whose layers the ranks compute together: every
  // rank makes the same calls, hidden states are the same on all. It gives log-probabilities, but no logits. `whole`:
  // the larger model. Before load().
  void share_layers(const ModelConfig& whole, Communicator& ranks);

  // Rounds the f32 masters (on any device) to the compute dtype and packs them; the masters are not kept.
  void load(const FlatParameters& masters, PolicyVersion version);
  // The same in parts: embedding, last norm and heads; one block; and a block's packed weights let go again.
  void load_ends(const FlatParameters& masters, PolicyVersion version);
  void load_block(int64_t block, const FlatParameters& masters);
  void drop_block(int64_t block);

  // For weights that are not all here at once: hidden_states() acquires each block (the callee loads it; `next` is the
  // one that will be wanted then, out of range at the ends), runs and releases it. The backward pass acquires it again,
  // recomputes its inside, and tells when its gradients are complete.
  struct BlockStream {
    std::function<void(int64_t block, int64_t next)> acquire;
    std::function<void(int64_t block)> release;
    // Before gradients of a block (-1: of what lies before and behind the blocks) are summed, and after.
    std::function<void(int64_t block)> gradients_begin;
    std::function<void(int64_t block)> gradients_done;
  };
  void stream_blocks(BlockStream stream) { stream_ = std::move(stream); }
  // Where backward sums gradients: f32, in the masters' layout. REQUIRES: trainable.
  void set_gradients(const FlatParameters& gradients);
  // The same in parts: embedding, last norm and heads; one block that is loaded. Undefined: nowhere.
  void set_end_gradients(const FlatParameters& gradients);
  void set_block_gradients(int64_t block, const FlatParameters& gradients);

  // Training keeps no more of a block than its input, and computes the block again in the backward pass: activations of
  // one block instead of all, for about a third more arithmetic. Same bits.
  void set_recompute(bool value) { recompute_ = value; }

  // Called in a backward pass as soon as the gradients of a block's weights are complete, last block first; empty: not.
  using BlockHook = std::function<void(int64_t block)>;
  void set_block_hook(BlockHook hook) { block_hook_ = std::move(hook); }
  // Takes what a backward pass would add to the embedding's gradient for the tokens looked up: row i [hidden] f32
  // belongs to token_ids[i]. It is what becomes known last. Empty: it is added.
  using LookupHook = std::function<void(const at::Tensor& token_ids, const at::Tensor& rows)>;
  void set_lookup_hook(LookupHook hook) { lookup_hook_ = std::move(hook); }

  // token_ids, positions [T] int64, on any device → after the final norm, [T, hidden_size] in the compute dtype.
  at::Tensor hidden_states(const at::Tensor& token_ids, const at::Tensor& positions, const Attention& attention) const;
  // hidden [n, hidden_size] → [n, vocab_size] f32, without gradient. REQUIRES: the whole vocabulary is here.
  at::Tensor logits(const at::Tensor& hidden) const;
  // hidden [n, hidden_size] → the value head's numbers [n] f32, differentiable. REQUIRES: config().value_head.
  at::Tensor values(const at::Tensor& hidden) const;

  const ModelConfig& config() const { return config_; }
  at::ScalarType compute_dtype() const { return compute_; }
  at::Device device() const { return device_; }
  WeightFormat weight_format() const { return weights_; }
  PolicyVersion version() const { return version_; }
  const LinearWeights& head() const { return head_; }
  double attention_scale() const;

 private:
  // A norm's weight: rounded to the compute dtype's values, a leaf whose gradient is a view of the flat buffer.
  using NormWeight = at::Tensor;

  struct Block {
    NormWeight input_norm, post_attention_norm;  // [hidden]
    NormWeight q_norm, k_norm;                   // [head_dim]; undefined without qk_norm
    LinearWeights qkv, output, gate_up, down;
  };

  void load_norm(NormWeight& norm, const FlatParameters& masters, const std::string& name) const;
  at::Tensor embed(const at::Tensor& token_ids) const;
  std::pair<at::Tensor, at::Tensor> head_norms(const Block& block) const;
  at::Tensor run_block(int64_t index, at::Tensor hidden, const at::Tensor& positions, const Attention& attention) const;

  ModelConfig config_;
  at::ScalarType compute_;
  WeightFormat weights_;
  at::Device device_;
  bool trainable_;
  bool recompute_ = false;
  BlockHook block_hook_;
  LookupHook lookup_hook_;
  BlockStream stream_;  // empty: all blocks are loaded
  PolicyVersion version_ = 0;
  RopeTable rope_;
  Communicator* ranks_ = nullptr;  // that share the layers; null: none
  int64_t first_token_ = 0;        // of the vocabulary's part that is here
  at::Tensor embedding_;           // [vocab, hidden] compute dtype
  at::Tensor embedding_grad_;      // [vocab, hidden] f32
  std::vector<Block> blocks_;
  NormWeight final_norm_;
  LinearWeights head_;  // not loaded without lm_head
  at::Tensor score_;    // [1, hidden] f32, a leaf like the norms; undefined without a value head
};

}  // namespace temper
