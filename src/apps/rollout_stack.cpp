#include "apps/rollout_stack.h"

#include "apps/model_source.h"

namespace temper {

EngineOptions engine_options(const RolloutSection& rollout) {
  EngineOptions options;
  options.max_num_seqs = rollout.max_num_seqs;
  options.kv_cache_memory_bytes = rollout.kv_cache_memory << 20;  // MiB
  options.block_size = rollout.block_size;
  options.enable_prefix_sharing = rollout.enable_prefix_sharing;
  options.enable_chunked_prefill = rollout.enable_chunked_prefill;
  return options;
}

std::vector<std::unique_ptr<Reward>> make_stage_rewards(const StageConfig& stage, const std::optional<Task>& task) {
  const ComputeType type = training_type(stage.run);
  return make_rewards(stage.reward, task ? &*task : nullptr, type.compute, type.device);
}

RolloutStack::RolloutStack(const Transformer& model, const Tokenizer& tokenizer, const StageConfig& stage,
                           const std::vector<std::unique_ptr<Reward>>& rewards, const Ranks& ranks)
    : engine_(model, tokenizer, engine_options(stage.rollout)),
      source_(engine_, rewards,
              {.reward_timeout_s = stage.reward.timeout_s,
               .environment = stage.rollout.environment,
               .max_turns = stage.rollout.max_turns}) {
  if (ranks.size() > 1) shared_.emplace(source_, ranks);
}

RolloutSource& RolloutStack::source() {
  if (shared_) return *shared_;
  return source_;
}

}  // namespace temper
