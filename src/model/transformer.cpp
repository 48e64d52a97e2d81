#include "model/transformer.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>
#include <torch/custom_class.h>

#include "core/error.h"
#include "model/elementwise.h"
#include "model/tensor_parallel.h"

namespace temper {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// Rows of the table as f32. Ids outside of it belong to other ranks' parts of the vocabulary.
at::Tensor look_up(const at::Tensor& table, const at::Tensor& ids, Communicator* ranks) {
  if (ranks == nullptr) return table.index_select(0, ids).to(at::kFloat);
  const at::Tensor elsewhere = ids.lt(0).logical_or_(ids.ge(table.size(0)));
  const at::Tensor rows = table.index_select(0, ids.clamp(0, table.size(0) - 1)).to(at::kFloat);
  rows.masked_fill_(elsewhere.unsqueeze(1), 0);
  ranks->all_reduce("embedding", rows).wait();
  return rows;
}

// Rows of the embedding as f32; backward adds to the embedding's gradient, or hands the rows to the hook. `anchor` is a
// scalar that requires a gradient: it puts the graph's beginning on the tape, since no other input does.
struct Embed : torch::autograd::Function<Embed> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& anchor, const at::Tensor& ids,
                            const at::Tensor& table, const at::Tensor& table_grad, const Transformer::LookupHook* hook,
                            Communicator* ranks) {
    context->save_for_backward({ids});
    context->saved_data["grad"] = table_grad;
    context->saved_data["hook"] = reinterpret_cast<int64_t>(hook);
    context->saved_data["shared"] = ranks != nullptr;
    return look_up(table, ids, ranks);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& hook = *reinterpret_cast<const Transformer::LookupHook*>(context->saved_data["hook"].toInt());
    at::Tensor ids = context->get_saved_variables()[0], rows = grads[0];
    at::Tensor table_grad = context->saved_data["grad"].toTensor();
    if (context->saved_data["shared"].toBool()) {
      const at::Tensor here = ids.ge(0).logical_and_(ids.lt(table_grad.size(0))).nonzero().squeeze(1);
      ids = ids.index_select(0, here);
      rows = rows.index_select(0, here);
    }
    if (hook)
      hook(ids, rows);
    else
      table_grad.index_add_(0, ids, rows);
    return {at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor(), at::Tensor()};
  }
};

// What every rank uses for a part of the heads: backward sums its gradient over them.
struct SharedWeight : torch::autograd::Function<SharedWeight> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& weight, Communicator* ranks) {
    context->saved_data["ranks"] = reinterpret_cast<int64_t>(ranks);
    return weight.view_as(weight);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    auto& ranks = *reinterpret_cast<Communicator*>(context->saved_data["ranks"].toInt());
    const at::Tensor sum = grads[0].clone(at::MemoryFormat::Contiguous);
    ranks.all_reduce("gradient of the heads' norms", sum).wait();
    return {sum, at::Tensor()};
  }
};

// A block whose inside is not kept: backward runs it again from its input. Gradients of its weights are summed where
// the block itself sums them.
struct RecomputedBlock : torch::autograd::Function<RecomputedBlock> {
  struct Block : torch::CustomClassHolder {
    Block(std::function<at::Tensor(at::Tensor)> f, const Transformer::BlockStream& s, int64_t i)
        : run(std::move(f)), stream(s), index(i) {}
    void enter(int64_t next) const {
      if (stream.acquire) stream.acquire(index, next);
    }
    void leave() const {
      if (stream.release) stream.release(index);
    }
    std::function<at::Tensor(at::Tensor)> run;
    const Transformer::BlockStream& stream;  // the model's
    int64_t index;
  };
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden,
                            const c10::intrusive_ptr<Block>& block) {
    context->save_for_backward({hidden});
    context->saved_data["block"] = c10::IValue::make_capsule(block);
    // Without gradients the residual stream is updated in place.
    block->enter(block->index + 1);
    const at::Tensor out = block->run(hidden.clone());
    block->leave();
    return out;
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto block = c10::static_intrusive_pointer_cast<Block>(context->saved_data["block"].toCapsule());
    const at::Tensor hidden = context->get_saved_variables()[0].detach().requires_grad_(true);
    block->enter(block->index - 1);
    if (block->stream.gradients_begin) block->stream.gradients_begin(block->index);
    const at::AutoGradMode record(true);
    block->run(hidden).backward(grads[0]);
    if (block->stream.gradients_done) block->stream.gradients_done(block->index);
    block->leave();
    return {hidden.grad(), at::Tensor()};
  }
};

// Where a block begins: its backward comes after everything in the block. (Autograd sums the gradients of leaves, the
// norms' weights, before it goes on to what depends on nothing else.)
struct BlockBegin : torch::autograd::Function<BlockBegin> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& hidden, const Transformer::BlockHook* hook,
                            int64_t block) {
    context->saved_data["hook"] = reinterpret_cast<int64_t>(hook);
    context->saved_data["block"] = block;
    return hidden.view_as(hidden);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& hook = *reinterpret_cast<const Transformer::BlockHook*>(context->saved_data["hook"].toInt());
    hook(context->saved_data["block"].toInt());
    return {grads[0], at::Tensor(), at::Tensor()};
  }
};

std::string layer_prefix(int64_t index) { return format("model.layers.{}.", index); }

// The sizes of a fused product: [sum of rows of neighbours, inputs].
struct FusedNames {
  std::string first, last;
  int64_t rows;
};

at::Tensor fused_weight(const FlatParameters& parameters, const FusedNames& names, int64_t inputs) {
  return parameters.span(names.first + ".weight", names.last + ".weight", {names.rows, inputs});
}

at::Tensor fused_bias(const FlatParameters& parameters, const FusedNames& names) {
  if (!parameters.contains(names.first + ".bias")) return {};
  return parameters.span(names.first + ".bias", names.last + ".bias", {names.rows});
}

}  // namespace

Transformer::Transformer(ModelConfig config, at::ScalarType compute, bool trainable, WeightFormat weights,
                         at::Device device)
    : config_(std::move(config)),
      compute_(compute),
      weights_(weights),
      device_(device),
      trainable_(trainable),
      blocks_(static_cast<size_t>(config_.num_layers)) {
  if (compute_ == at::kBFloat16 && device_.is_cpu() && !cpu_has_bf16())
    throw ConfigError("run.dtype = bf16: this CPU has no bf16 instructions (AVX512-BF16 or AMX). Use --run.dtype=f32.");
  rope_ = rope_table(config_, config_.max_position_embeddings);
  rope_ = {rope_.cos.to(device_), rope_.sin.to(device_)};
}

double Transformer::attention_scale() const { return 1.0 / std::sqrt(static_cast<double>(config_.head_dim)); }

namespace {

FusedNames qkv_names(const ModelConfig& config, const std::string& prefix) {
  return {prefix + "self_attn.q_proj", prefix + "self_attn.v_proj", config.q_size() + 2 * config.kv_size()};
}
FusedNames output_names(const ModelConfig& config, const std::string& prefix) {
  return {prefix + "self_attn.o_proj", prefix + "self_attn.o_proj", config.hidden_size};
}
FusedNames gate_up_names(const ModelConfig& config, const std::string& prefix) {
  return {prefix + "mlp.gate_proj", prefix + "mlp.up_proj", 2 * config.intermediate_size};
}
FusedNames down_names(const ModelConfig& config, const std::string& prefix) {
  return {prefix + "mlp.down_proj", prefix + "mlp.down_proj", config.hidden_size};
}
const char* head_name(const ModelConfig& config) {
  return config.tie_word_embeddings ? "model.embed_tokens.weight" : "lm_head.weight";
}

}  // namespace

void Transformer::share_layers(const ModelConfig& whole, Communicator& ranks) {
  const TensorPart part{ranks.rank(), ranks.size()};
  TEMPER_CHECK(config_.num_heads == part.length(whole.num_heads) && config_.vocab_size == part.length(whole.vocab_size),
               "{} heads and {} tokens are not the part of rank {}", config_.num_heads, config_.vocab_size, part.rank);
  ranks_ = &ranks;
  first_token_ = part.begin(whole.vocab_size);
  for (Block& block : blocks_) {
    block.qkv.output_ranks = block.gate_up.output_ranks = ranks_;
    block.output.input_ranks = block.down.input_ranks = ranks_;
  }
  head_.output_ranks = ranks_;
  head_.first_output = first_token_;
  head_.total_outputs = whole.vocab_size;
}

void Transformer::load(const FlatParameters& masters, PolicyVersion version) {
  load_ends(masters, version);
  for (int64_t i = 0; i < config_.num_layers; ++i) load_block(i, masters);
}

void Transformer::load_norm(NormWeight& norm, const FlatParameters& masters, const std::string& name) const {
  if (!masters.contains(name)) return;
  const at::Tensor rounded = round_to(masters[name].to(device_), compute_);
  if (norm.defined())
    norm.detach().copy_(rounded);  // keeps the leaf and its gradient view
  else
    norm = rounded.clone().requires_grad_(trainable_);
}

namespace {

// What a block is made of: norm(its weight, name) and linear(its weights, names, inputs).
template <class Block, class Norm, class Linear>
void each_weight(Block& block, const ModelConfig& config, int64_t index, const Norm& norm, const Linear& linear) {
  const std::string prefix = layer_prefix(index);
  norm(block.input_norm, prefix + "input_layernorm.weight");
  norm(block.q_norm, prefix + "self_attn.q_norm.weight");
  norm(block.k_norm, prefix + "self_attn.k_norm.weight");
  norm(block.post_attention_norm, prefix + "post_attention_layernorm.weight");
  linear(block.qkv, qkv_names(config, prefix), config.hidden_size);
  linear(block.output, output_names(config, prefix), config.q_size());
  linear(block.gate_up, gate_up_names(config, prefix), config.hidden_size);
  linear(block.down, down_names(config, prefix), config.intermediate_size);
}

}  // namespace

void Transformer::load_block(int64_t index, const FlatParameters& masters) {
  const at::NoGradGuard no_grad;
  const auto load = [&](NormWeight& norm, const std::string& name) { load_norm(norm, masters, name); };
  const auto load_linear = [&](LinearWeights& weights, const FusedNames& names, int64_t inputs) {
    const at::Tensor bias = fused_bias(masters, names);
    weights.load(fused_weight(masters, names, inputs).to(device_), bias.defined() ? bias.to(device_) : bias, compute_,
                 trainable_, weights_);
  };
  each_weight(blocks_[static_cast<size_t>(index)], config_, index, load, load_linear);
}

// The norms stay: they are small, and leaves that gradients are summed for.
void Transformer::drop_block(int64_t index) {
  Block& block = blocks_[static_cast<size_t>(index)];
  for (LinearWeights* weights : {&block.qkv, &block.output, &block.gate_up, &block.down})
    weights->forward = weights->backward = PackedMatrix();
}

void Transformer::load_ends(const FlatParameters& masters, PolicyVersion version) {
  const at::NoGradGuard no_grad;
  load_norm(final_norm_, masters, "model.norm.weight");
  const at::Tensor table = masters["model.embed_tokens.weight"];
  if (embedding_.defined())
    embedding_.copy_(table);
  else
    embedding_ = table.to(device_, compute_, /*non_blocking=*/false, /*copy=*/true);
  if (config_.lm_head) head_.load(masters[head_name(config_)].to(device_), {}, compute_, trainable_, weights_);
  if (config_.value_head) {
    // One row: it stays f32.
    if (score_.defined())
      score_.detach().copy_(masters["score.weight"]);
    else
      score_ = masters["score.weight"].to(device_, at::kFloat, false, /*copy=*/true).requires_grad_(trainable_);
  }
  version_ = version;
}

void Transformer::set_gradients(const FlatParameters& gradients) {
  for (int64_t i = 0; i < config_.num_layers; ++i) set_block_gradients(i, gradients);
  set_end_gradients(gradients);
}

namespace {

// Leaves sum their gradient in a view of the flat buffer.
void set_leaf_gradient(const at::Tensor& leaf, const FlatParameters& gradients, const std::string& name) {
  if (leaf.defined()) leaf.mutable_grad() = gradients.flat().defined() ? gradients[name] : at::Tensor();
}

}  // namespace

void Transformer::set_block_gradients(int64_t index, const FlatParameters& gradients) {
  TEMPER_CHECK(trainable_, "gradients belong to a trainable model");
  const bool somewhere = gradients.flat().defined();
  const auto set_linear = [&](LinearWeights& weights, const FusedNames& names, int64_t inputs) {
    weights.weight_grad = somewhere ? fused_weight(gradients, names, inputs) : at::Tensor();
    weights.bias_grad = somewhere ? fused_bias(gradients, names) : at::Tensor();
  };
  const auto set_norm = [&](const NormWeight& norm, const std::string& name) {
    set_leaf_gradient(norm, gradients, name);
  };
  each_weight(blocks_[static_cast<size_t>(index)], config_, index, set_norm, set_linear);
}

void Transformer::set_end_gradients(const FlatParameters& gradients) {
  TEMPER_CHECK(trainable_ && final_norm_.defined(), "gradients belong to a loaded, trainable model");
  const auto of = [&](const char* name) { return gradients.flat().defined() ? gradients[name] : at::Tensor(); };
  set_leaf_gradient(final_norm_, gradients, "model.norm.weight");
  embedding_grad_ = of("model.embed_tokens.weight");
  if (config_.lm_head) head_.weight_grad = of(head_name(config_));
  if (config_.value_head) set_leaf_gradient(score_, gradients, "score.weight");
}

at::Tensor Transformer::embed(const at::Tensor& token_ids) const {
  const at::Tensor ids = ranks_ == nullptr ? token_ids : token_ids - first_token_;
  if (!at::GradMode::is_enabled() || !embedding_grad_.defined()) return look_up(embedding_, ids, ranks_);
  const at::Tensor anchor = at::zeros({}).requires_grad_(true);
  return Embed::apply(anchor, ids, embedding_, embedding_grad_, &lookup_hook_, ranks_);
}

// The norms of q's and k's heads, as a block's pass uses them.
std::pair<at::Tensor, at::Tensor> Transformer::head_norms(const Block& block) const {
  const bool shared = ranks_ != nullptr && block.q_norm.defined();
  if (!shared || !at::GradMode::is_enabled() || !block.q_norm.requires_grad()) return {block.q_norm, block.k_norm};
  const at::Tensor both = SharedWeight::apply(at::stack({block.q_norm, block.k_norm}), ranks_);
  return {both.select(0, 0), both.select(0, 1)};
}

at::Tensor Transformer::run_block(int64_t index, at::Tensor hidden, const at::Tensor& positions,
                                  const Attention& attention) const {
  const Block& block = blocks_[static_cast<size_t>(index)];
  const int64_t tokens = hidden.size(0), heads = config_.num_heads + 2 * config_.num_kv_heads;

  const at::Tensor x = rms_norm(hidden, block.input_norm, config_.rms_norm_eps, compute_);
  const auto [q_norm, k_norm] = head_norms(block);
  const at::Tensor qkv =
      norm_rope_qkv(linear(x, block.qkv, compute_).view({tokens, heads, config_.head_dim}), config_.num_heads,
                    config_.num_kv_heads, q_norm, k_norm, config_.rms_norm_eps, rope_.cos, rope_.sin, positions);
  const at::Tensor mixed = attention(index, qkv);  // [T, H, D]
  hidden = linear_add(hidden, mixed.view({tokens, config_.q_size()}), block.output);

  const at::Tensor y = rms_norm(hidden, block.post_attention_norm, config_.rms_norm_eps, compute_);
  return linear_add(hidden, silu_mul(linear(y, block.gate_up, compute_), compute_), block.down);
}

at::Tensor Transformer::hidden_states(const at::Tensor& given_ids, const at::Tensor& given_positions,
                                      const Attention& attention) const {
  const at::Tensor token_ids = given_ids.to(device_), positions = given_positions.to(device_);
  if (stream_.gradients_begin && at::GradMode::is_enabled()) stream_.gradients_begin(-1);
  at::Tensor hidden = embed(token_ids);  // [T, hidden] f32
  const bool with_gradient = at::GradMode::is_enabled() && hidden.requires_grad();
  const bool streams = static_cast<bool>(stream_.acquire), recompute = (recompute_ || streams) && with_gradient;
  const bool tells = block_hook_ && with_gradient;
  for (int64_t i = 0; i < config_.num_layers; ++i) {
    if (tells) hidden = BlockBegin::apply(hidden, &block_hook_, i);
    if (!recompute) {
      if (streams) stream_.acquire(i, i + 1);
      hidden = run_block(i, hidden, positions, attention);
      if (streams) stream_.release(i);
      continue;
    }
    const auto run = [this, i, positions, attention](at::Tensor x) {
      return run_block(i, std::move(x), positions, attention);
    };
    hidden = RecomputedBlock::apply(hidden, c10::make_intrusive<RecomputedBlock::Block>(run, stream_, i));
  }
  return rms_norm(hidden, final_norm_, config_.rms_norm_eps, compute_);
}

at::Tensor Transformer::values(const at::Tensor& hidden) const {
  TEMPER_CHECK(config_.value_head, "the model has no value head");
  return (hidden.to(at::kFloat) * score_).sum(1);
}

at::Tensor Transformer::logits(const at::Tensor& hidden) const {
  at::NoGradGuard no_grad;
  TEMPER_CHECK(ranks_ == nullptr, "the vocabulary is shared among {} ranks", ranks_->size());
  return head_.forward.multiply(hidden, at::kFloat);
}

}  // namespace temper
