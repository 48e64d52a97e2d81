// The models that a stage works with, loaded as its configuration says: the one it trains, a critic, and the frozen
// ones. Each is held against the policy's vocabulary; each frozen one has an identity that a checkpoint keeps.
#pragma once
#include <map>
#include <memory>
#include <optional>
#include <string>

#include "apps/model_source.h"
#include "config/config.h"
#include "trainer/adamw.h"
#include "trainer/trainer_model.h"

namespace temper {

struct StageModels {
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
  std::optional<TrainerModel> policy;      // what is trained: a policy, or a reward model in the making
  std::optional<TrainerModel> own_critic;  // without a shared backbone
  std::optional<TrainerModel> reference, teacher;
  std::unique_ptr<AdamW> optimizer, critic_optimizer;
  std::string start_hash;                         // of what is trained, before the first step; several ranks
  std::map<std::string, std::string> identities;  // "model.reference" → hash of its weights, and so on

  TrainerModel* critic(const StageConfig& stage);  // null where [algo] needs none
  // What the stage hands on: the trained model without a value head that it shares with a critic.
  ModelConfig exported_config(const StageConfig& stage) const;
};

// start: directory of the model to start from; empty: [model] init. Paths of `stage` are directories ("stage:NAME" has
// been resolved). ConfigError where a model does not fit the policy.
StageModels load_stage_models(const StageConfig& stage, const std::string& start, const Ranks& ranks = {});

}  // namespace temper
