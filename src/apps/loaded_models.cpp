#include "apps/loaded_models.h"

#include "config/stage_models.h"
#include "core/error.h"
#include "model/hf_directory.h"

namespace temper {
namespace {

AdamWSettings adamw_settings(const OptimSection& optim) {
  return {optim.betas[0], optim.betas[1], optim.eps, optim.weight_decay};
}

// A model beside the policy, which reads the same token ids.
ModelWeights open_companion(const char* key, const std::string& path, const ModelConfig& policy) {
  ModelWeights model = open_model(path);
  if (model.config.vocab_size != policy.vocab_size)
    throw ConfigError("{} = {}: its vocabulary has {} rows, the policy's {}. Use a model of the same family.", key,
                      path, model.config.vocab_size, policy.vocab_size);
  return model;
}

ModelWeights open_language_model(const char* key, const std::string& path, const ModelConfig& policy) {
  ModelWeights model = open_companion(key, path, policy);
  if (!model.config.lm_head)
    throw ConfigError("{} = {}: it is a {}, which generates nothing. Use a …ForCausalLM directory.", key, path,
                      architecture_name(model.config));
  return model;
}

// The heads that the stage trains on the body it starts from.
ModelWeights with_stage_heads(ModelWeights start, const StageConfig& stage, const std::string& path) {
  if (makes_reward_model(stage)) return with_heads(std::move(start), /*lm_head=*/false, /*value_head=*/true);
  if (!start.config.lm_head)
    throw ConfigError("model.path = {}: it is a {}, which generates nothing. Use a …ForCausalLM directory.", path,
                      architecture_name(start.config));
  if (stage.algo.needs_critic() && stage.critic.shared_backbone) return with_heads(std::move(start), true, true);
  return start;
}

}  // namespace

TrainerModel* StageModels::critic(const StageConfig& stage) {
  if (!stage.algo.needs_critic()) return nullptr;
  return own_critic ? &*own_critic : &*policy;
}

ModelConfig StageModels::exported_config(const StageConfig& stage) const {
  ModelConfig config = policy->config();
  config.value_head = makes_reward_model(stage);
  return config;
}

StageModels load_stage_models(const StageConfig& stage, const std::string& start, const Ranks& ranks) {
  StageModels models;
  const ComputeType type = training_type(stage.run);
  if (uses_reward_model(stage) && stage.algo.trains_on_rollouts())
    models.identities["reward.model"] = hash_of(open_model(stage.reward.model));
  ModelSource source = start.empty() ? make_new_model(stage.model.init, stage.run.seed) : load_model_source(start);
  models.tokenizer = std::move(source.tokenizer);
  models.chat = std::move(source.chat);
  const ModelConfig shape = source.weights.config;
  if (shape.vocab_size < models.tokenizer->vocab_size())
    throw ConfigError("{}: the tokenizer has {} ids, the model {} rows. They do not belong together.", start,
                      models.tokenizer->vocab_size(), shape.vocab_size);
  if (stage.algo.distill_top_k > shape.vocab_size)
    throw ConfigError("algo.distill_top_k = {} exceeds the vocabulary of {}. Lower it, or set 0 for all.",
                      stage.algo.distill_top_k, shape.vocab_size);

  const auto make_optimizer = [&](const TrainerModel& model) {
    return std::make_unique<AdamW>(model.layout(), adamw_settings(stage.optim),
                                   model.shard_plan(stage.train.shard, ranks), type.device);
  };
  const auto make_trainable = [&](const char* key, const ModelWeights& weights) {
    check_tensor_parallel(weights.config, stage.train.tensor_parallel, key);
    TrainerModel made = TrainerModel::trainable(weights, type.compute, stage.train.shard, ranks, type.device);
    made.set_recompute(stage.train.recompute);
    return made;
  };
  // One that generates is whole on each rank.
  const auto freeze = [&](const char* key, const ModelWeights& weights, bool generates = false) {
    models.identities[key] = hash_of(weights);
    if (generates) return TrainerModel::frozen(weights, type.compute, type.weights, type.device);
    check_tensor_parallel(weights.config, stage.train.tensor_parallel, key);
    return TrainerModel::frozen(weights, type.compute, type.weights, type.device, ranks, stage.train.shard);
  };
  if (stage.algo.needs_reference())
    models.reference.emplace(
        freeze("model.reference", stage.model.reference.empty()
                                      ? source.weights
                                      : open_language_model("model.reference", stage.model.reference, shape)));
  if (stage.algo.needs_teacher())
    models.teacher.emplace(freeze("model.teacher", open_language_model("model.teacher", stage.model.teacher, shape),
                                  /*generates=*/stage.rollout.teacher_share > 0));
  if (stage.algo.needs_critic() && !stage.critic.shared_backbone) {
    const ModelWeights body =
        stage.critic.path.empty() ? source.weights : open_companion("critic.path", stage.critic.path, shape);
    models.own_critic.emplace(make_trainable("critic.path", with_heads(body, /*lm_head=*/false, /*value_head=*/true)));
    models.critic_optimizer = make_optimizer(*models.own_critic);
  }
  const ModelWeights trained = with_stage_heads(source.weights, stage, start);
  if (ranks.size() > 1) models.start_hash = hash_of(trained);
  models.policy.emplace(make_trainable("the model", trained));
  models.optimizer = make_optimizer(*models.policy);
  return models;
}

}  // namespace temper
