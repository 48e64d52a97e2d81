#include "apps/loaded_models.h"

#include "config/stage_models.h"
#include "core/error.h"
#include "core/hash.h"
#include "model/tensor_parallel.h"

namespace temper {
namespace {

std::string identity_of(const LoadedModel& model) {
  const at::Tensor& flat = model.parameters.flat();
  return xxh3_128_hex(flat.const_data_ptr(), flat.nbytes());
}

AdamWSettings adamw_settings(const OptimSection& optim) {
  return {optim.betas[0], optim.betas[1], optim.eps, optim.weight_decay};
}

// A model beside the policy, which reads the same token ids.
LoadedModel load_companion(const char* key, const std::string& path, const ModelConfig& policy) {
  LoadedModel model = load_model(path);
  if (model.config.vocab_size != policy.vocab_size)
    throw ConfigError("{} = {}: its vocabulary has {} rows, the policy's {}. Use a model of the same family.", key,
                      path, model.config.vocab_size, policy.vocab_size);
  return model;
}

LoadedModel language_model(const char* key, const std::string& path, const ModelConfig& policy) {
  LoadedModel model = load_companion(key, path, policy);
  if (!model.config.lm_head)
    throw ConfigError("{} = {}: it is a {}, which generates nothing. Use a …ForCausalLM directory.", key, path,
                      architecture_name(model.config));
  return model;
}

// The heads that the stage trains on the body it starts from.
LoadedModel with_stage_heads(LoadedModel start, const StageConfig& stage, const std::string& path) {
  if (makes_reward_model(stage)) return with_heads(start, /*lm_head=*/false, /*value_head=*/true);
  if (!start.config.lm_head)
    throw ConfigError("model.path = {}: it is a {}, which generates nothing. Use a …ForCausalLM directory.", path,
                      architecture_name(start.config));
  if (stage.algo.needs_critic() && stage.critic.shared_backbone) return with_heads(start, true, true);
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
    models.identities["reward.model"] = identity_of(load_model(stage.reward.model));
  ModelSource source = start.empty() ? make_new_model(stage.model.init, stage.run.seed) : load_model_source(start);
  models.tokenizer = std::move(source.tokenizer);
  models.chat = std::move(source.chat);
  const ModelConfig shape = source.model.config;
  if (shape.vocab_size < models.tokenizer->vocab_size())
    throw ConfigError("{}: the tokenizer has {} ids, the model {} rows. They do not belong together.", start,
                      models.tokenizer->vocab_size(), shape.vocab_size);
  if (stage.algo.distill_top_k > shape.vocab_size)
    throw ConfigError("algo.distill_top_k = {} exceeds the vocabulary of {}. Lower it, or set 0 for all.",
                      stage.algo.distill_top_k, shape.vocab_size);

  const auto make_optimizer = [&](const TrainerModel& model) {
    return std::make_unique<AdamW>(model.parameters(), adamw_settings(stage.optim),
                                   model.shard_plan(stage.train.shard, ranks));
  };
  const auto make_trainable = [&](const char* key, LoadedModel model) {
    check_tensor_parallel(model.config, stage.train.tensor_parallel, key);
    TrainerModel made = TrainerModel::trainable(std::move(model), type.compute, stage.train.shard, ranks, type.device);
    made.set_recompute(stage.train.recompute);
    return made;
  };
  const auto freeze = [&](const char* key, LoadedModel model, bool generates = false) {
    models.identities[key] = identity_of(model);
    if (!generates) check_tensor_parallel(model.config, stage.train.tensor_parallel, key);
    return TrainerModel::frozen(std::move(model), type.compute, type.weights, type.device, generates ? Ranks() : ranks);
  };
  if (stage.algo.needs_reference())
    models.reference.emplace(
        freeze("model.reference", stage.model.reference.empty()
                                      ? source.model  // shares the masters for a moment
                                      : language_model("model.reference", stage.model.reference, shape)));
  if (stage.algo.needs_teacher())
    models.teacher.emplace(freeze("model.teacher", language_model("model.teacher", stage.model.teacher, shape),
                                  /*generates=*/stage.rollout.teacher_share > 0));
  if (stage.algo.needs_critic() && !stage.critic.shared_backbone) {
    const LoadedModel body =
        stage.critic.path.empty() ? source.model : load_companion("critic.path", stage.critic.path, shape);
    models.own_critic.emplace(make_trainable("critic.path", with_heads(body, /*lm_head=*/false, /*value_head=*/true)));
    models.critic_optimizer = make_optimizer(*models.own_critic);
  }
  LoadedModel trained = with_stage_heads(std::move(source.model), stage, start);
  if (ranks.size() > 1) models.start_hash = identity_of(trained);
  models.policy.emplace(make_trainable("the model", std::move(trained)));
  models.optimizer = make_optimizer(*models.policy);
  return models;
}

}  // namespace temper
