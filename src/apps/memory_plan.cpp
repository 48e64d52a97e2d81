#include "apps/memory_plan.h"

#include <algorithm>
#include <cmath>
#include <cstdio>

#include "apps/model_source.h"
#include "config/stage_models.h"
#include "core/error.h"
#include "model/device.h"
#include "model/initialize.h"

namespace temper {
namespace {

constexpr double kRuntimeBytes = 350e6;  // program, LibTorch, allocator: measured on a model of a few kilobytes

std::string gib(double bytes) {
  char text[32];
  std::snprintf(text, sizeof text, "%.3f GiB", bytes / (1024.0 * 1024.0 * 1024.0));
  return text;
}

// What autograd keeps of one token in one block, in elements of f32 and of the compute dtype: the two norms' inputs;
// normed rows, qkv before and after the rotation, attention's output, gate and up, and their product.
double activation_bytes(const ModelConfig& model, double element) {
  const auto hidden = static_cast<double>(model.hidden_size), wide = static_cast<double>(model.intermediate_size);
  const auto qkv = static_cast<double>(model.q_size() + 2 * model.kv_size()), q = static_cast<double>(model.q_size());
  return 2 * hidden * 4 + (2 * hidden + 2 * qkv + q + 3 * wide) * element + static_cast<double>(model.num_heads) * 4;
}

}  // namespace

double MemoryPlan::total_bytes() const {
  double sum = 0;
  for (const MemoryLine& line : lines) sum += line.bytes;
  return sum;
}

std::string MemoryPlan::table() const {
  std::string text;
  char row[256];
  for (const MemoryLine& line : lines) {
    std::snprintf(row, sizeof row, "  %-28s %12s   %s\n", line.what.c_str(), gib(line.bytes).c_str(),
                  line.arithmetic.c_str());
    text += row;
  }
  std::snprintf(row, sizeof row, "  %-28s %12s   of %s free\n", "total", gib(total_bytes()).c_str(),
                gib(free_bytes).c_str());
  return text + row;
}

ModelConfig stage_model_config(const StageConfig& stage, const std::string& directory) {
  return load_model_shape(directory, stage.model.init).config;
}

MemoryPlan plan_memory(const StageConfig& stage, const ModelConfig& model) {
  // Of a tensor-parallel rank's part; the few parameters that all ranks hold are left out of the account.
  const auto whole = static_cast<double>(num_parameters(model));
  const auto tensor_parallel = static_cast<double>(stage.train.tensor_parallel);
  const double parameters = whole / tensor_parallel;
  const ComputeType training = training_type(stage.run);
  const double element = training.compute == at::kBFloat16 ? 2 : 4;
  const auto per_parameter = [&](double bytes) {
    return format("{} parameters x {} bytes", std::round(parameters), bytes);
  };
  const auto micro = static_cast<double>(stage.train.max_tokens_per_micro_batch);
  MemoryPlan plan;
  plan.free_bytes = static_cast<double>(free_memory_bytes(training.device));
  // Sharded: a part of the moments, or of masters and gradients too, with two blocks packed at a time.
  const auto ranks = std::max(
      1.0, static_cast<double>(stage.train.ranks) / tensor_parallel / static_cast<double>(stage.train.replicas));
  const double moment_shards = stage.train.shard == Shard::kNone ? 1 : ranks;
  const double weight_shards = stage.train.shard == Shard::kFull ? ranks : 1;
  const double ends =
      static_cast<double>(model.vocab_size * model.hidden_size) * (model.tie_word_embeddings ? 1 : 2) / tensor_parallel;
  const bool sharded = stage.train.shard == Shard::kFull && ranks > 1;
  const double packed = sharded ? ends + 2 * (parameters - ends) / static_cast<double>(model.num_layers) : parameters;
  plan.lines.push_back({"master weights (f32)", per_parameter(4 / weight_shards), 4 / weight_shards * parameters});
  plan.lines.push_back({"AdamW moments (f32)", per_parameter(8 / moment_shards), 8 / moment_shards * parameters});
  plan.lines.push_back({"gradients (f32)", per_parameter(4 / weight_shards), 4 / weight_shards * parameters});
  plan.lines.push_back({"packed for forward", format("{} parameters x {} bytes", packed, element), element * packed});
  if (training.device.is_cpu())  // a GPU's products read the same copy both ways
    plan.lines.push_back(
        {"packed for backward", format("{} parameters x {} bytes", packed, element), element * packed});
  const ComputeType rollouts = rollout_type(stage);
  const double rollout_element = rollouts.compute == at::kBFloat16 ? 2 : 4;
  if (stage.algo.trains_on_rollouts() && !stage.uses_hub() &&
      (rollouts != training || tensor_parallel > 1 || sharded)) {
    const double bytes = rollouts.weights == WeightFormat::kInt8 ? 1 : rollout_element;
    plan.lines.push_back({"packed for rollouts", format("{} parameters x {} bytes", whole, bytes), bytes * whole});
  }
  if (stage.algo.needs_reference()) {
    // Sharded: this rank's part beside what is packed at a time.
    const double here = sharded ? packed + (parameters - ends) / ranks : parameters;
    plan.lines.push_back({"reference", format("{} parameters x {} bytes", std::round(here), element), element * here});
  }
  const auto frozen = [&](const char* what, const std::string& path, bool needed, double shards) {
    if (!needed || stage_reference(path)) return;  // an earlier stage's: about the policy's size, not there yet
    const double count = static_cast<double>(num_parameters(load_model_config(path))) / shards;
    plan.lines.push_back({what, format("{} parameters x {} bytes", std::round(count), element), element * count});
  };
  const bool teacher_generates = stage.rollout.teacher_share > 0;
  frozen("teacher", stage.model.teacher, stage.algo.needs_teacher(),
         teacher_generates ? 1 : tensor_parallel * weight_shards);
  frozen("reward model", stage.reward.model, uses_reward_model(stage), 1);
  if (stage.algo.needs_critic() && !stage.critic.shared_backbone)
    plan.lines.push_back(
        {"critic, as all of the above", per_parameter(16 + 2 * element), (16 + 2 * element) * parameters});
  // The writer's copy of what this rank saves: masters and moments, shared out among the ranks of a replica.
  const double saved = (stage.algo.needs_critic() && !stage.critic.shared_backbone ? 24 : 12) / ranks;
  plan.lines.push_back({"checkpoint being written", per_parameter(saved), saved * parameters});
  if (!stage.checkpoint.ram_dir.empty())  // the one that is there, and the next while it is written
    plan.lines.push_back({"checkpoints in checkpoint.ram_dir", per_parameter(2 * saved), 2 * saved * parameters});
  // Recomputed: every block's input, and the inside of one block.
  const auto layers = static_cast<double>(model.num_layers);
  const double block = activation_bytes(model, element);
  const double per_token =
      stage.train.recompute ? layers * 4 * static_cast<double>(model.hidden_size) + block : layers * block;
  plan.lines.push_back({"activations",
                        format("{} tokens a micro-batch x {} bytes", stage.train.max_tokens_per_micro_batch, per_token),
                        micro * per_token});
  const double vocabulary_block =
      std::min<double>(training.device.is_cpu() ? 2048 : 65536, static_cast<double>(model.vocab_size));
  plan.lines.push_back({"logits of a block",
                        format("{} tokens x {} of the vocabulary x {} bytes", micro, vocabulary_block, 4 + 3 * element),
                        micro * vocabulary_block * (4 + 3 * element)});
  if (stage.algo.trains_on_rollouts()) {
    const double kv_token = 2.0 * static_cast<double>(model.num_layers * model.kv_size()) * rollout_element;
    const auto tokens = static_cast<double>(
        std::min(stage.rollout.max_num_seqs, stage.train.num_prompts_per_step * stage.rollout.num_generations) *
            stage.rollout.max_completion_length +
        stage.train.num_prompts_per_step * stage.data.max_prompt_length);
    plan.lines.push_back({"KV cache, at most", format("{} tokens x {} bytes", tokens, kv_token), tokens * kv_token});
  }
  plan.lines.push_back({"program and libraries", "", kRuntimeBytes});
  return plan;
}

void refuse_if_too_large(const StageConfig& stage, const std::string& directory) {
  const MemoryPlan plan = plan_memory(stage, stage_model_config(stage, directory));
  if (plan.total_bytes() <= plan.free_bytes) return;
  throw ConfigError(
      "stage {} needs {} of memory, {} is free:\n{}Lower train.max_tokens_per_micro_batch or rollout.max_num_seqs, or "
      "use a "
      "smaller model.",
      stage.name, gib(plan.total_bytes()), gib(plan.free_bytes), plan.table());
}

}  // namespace temper
