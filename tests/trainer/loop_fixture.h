// A stage's train loop over given groups, on a tiny model: what the tests of the loop and of its ranks share.
#pragma once
#include <cmath>
#include <functional>

#include "core/rng.h"
#include "model/initialize.h"
#include "trainer/train_loop.h"

namespace temper {

inline LoadedModel tiny_model(uint64_t seed = 5, const std::function<void(ModelInit&)>& shape = {}) {
  ModelInit init;
  init.family = "llama";
  init.hidden_size = 32;
  init.num_layers = 2;
  init.num_heads = 2;
  init.max_position_embeddings = 64;
  if (shape) shape(init);
  LoadedModel model;
  model.config = new_model_config(init, {53, {}, {}, {}});
  model.parameters = FlatParameters(model.config);
  initialize_parameters(model.config, seed, model.parameters);
  model.parameters.flat().mul_(4);
  // Four times each, the norms of q and k would make attention 16 times as sharp, and rounding with it.
  for (const ParameterSpec& spec : model.parameters.specs())
    if (spec.name.ends_with("q_norm.weight") || spec.name.ends_with("k_norm.weight"))
      model.parameters[spec.name].fill_(1);
  return model;
}

using RewardOf = std::function<double(int64_t serial, int64_t completion)>;

// A stage's loop over groups that are drawn from a generator, with behavior_logprobs that fit nobody exactly.
class Fixture {
 public:
  explicit Fixture(Preset preset, const std::function<void(StageConfig&)>& change = {}, const Ranks& ranks = {},
                   at::Device device = at::kCPU, const std::function<void(ModelInit&)>& shape = {}) {
    config.name = "test";
    config.algo = algo_preset(preset);
    config.algo.whiten_advantages = config.algo.whitens();
    config.train.num_prompts_per_step = 4;
    config.train.max_steps = 50;
    config.rollout.max_completion_length = 8;
    config.optim.learning_rate = 1e-2;
    config.optim.betas = {0.9, 0.99};
    if (change) change(config);
    const bool pairs_with_values = config.algo.policy_loss == PolicyLoss::kRewardModel;
    const bool shared = config.algo.needs_critic() && config.critic.shared_backbone;
    const auto make_trainable = [&](const LoadedModel& model) {
      return TrainerModel::trainable(weights_of(model), at::kFloat, config.train.shard, ranks, device);
    };
    const auto freeze = [&](const LoadedModel& model) {
      return TrainerModel::frozen(weights_of(model), at::kFloat, WeightFormat::kCompute, device, ranks,
                                  config.train.shard);
    };
    policy.emplace(make_trainable(with_heads(tiny_model(5, shape), !pairs_with_values, pairs_with_values || shared)));
    policy->set_recompute(config.train.recompute);
    reference.emplace(freeze(tiny_model(6, shape)));
    teacher.emplace(freeze(tiny_model(7, shape)));
    const AdamWSettings settings{config.optim.betas[0], config.optim.betas[1]};
    const auto make_optimizer = [&](const TrainerModel& model) {
      return std::make_unique<AdamW>(model.layout(), settings, model.shard_plan(config.train.shard, ranks), device);
    };
    optimizer = make_optimizer(*policy);
    if (config.algo.needs_critic() && !shared) {
      critic.emplace(make_trainable(with_heads(tiny_model(5, shape), false, true)));
      critic_optimizer = make_optimizer(*critic);
    }
    AlgoContext context;
    context.max_completion_length = config.rollout.max_completion_length;
    context.reward_names = {"given"};
    context.reward_weights = {1.0};
    algorithm = make_algorithm(config.algo, context);
  }

  TrainLoopParts parts(TakeGroups take) {
    TrainLoopParts parts;
    parts.config = &config;
    parts.policy = &*policy;
    if (config.algo.needs_critic()) parts.critic = critic ? &*critic : &*policy;
    parts.reference = &*reference;
    parts.teacher = &*teacher;
    parts.algorithm = algorithm.get();
    parts.optimizer = optimizer.get();
    parts.critic_optimizer = critic_optimizer.get();
    parts.take_groups = std::move(take);
    if (config.algo.trains_on_rollouts()) parts.reward_weights = {1.0};
    return parts;
  }
  TrainLoop loop(TakeGroups take) { return TrainLoop(parts(std::move(take)), {}); }
  TrainLoop loop(RewardOf reward, int64_t group_size = 4) {
    return loop([=, this](int64_t first, int64_t count) { return groups(first, count, group_size, reward); });
  }

  std::vector<RolloutGroup> groups(int64_t first, int64_t count, int64_t size, const RewardOf& reward) {
    std::vector<RolloutGroup> made;
    for (int64_t serial = first; serial < first + count; ++serial) {
      SplitMix64 random(static_cast<uint64_t>(serial) + 100);
      const auto tokens = [&](int64_t length) {
        std::vector<int32_t> ids;
        for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random.in_range(0, 52)));
        return ids;
      };
      RolloutGroup group;
      group.prompt.serial = serial;
      group.prompt.token_ids = tokens(3 + serial % 3);
      for (int64_t i = 0; i < size; ++i) {
        Completion completion;
        completion.token_ids = tokens(2 + i);
        completion.behavior_logprobs.assign(completion.token_ids.size(), -3.9F);
        completion.policy_versions.assign(completion.token_ids.size(), 0);
        const double value = reward(serial, i);
        if (std::isnan(value)) completion.error = "it failed";
        completion.rewards = {value};
        group.completions.push_back(std::move(completion));
      }
      group.baseline_reward = 0.25;
      asked.push_back(serial);
      made.push_back(std::move(group));
    }
    return made;
  }

  StageConfig config;
  std::optional<TrainerModel> policy, critic, reference, teacher;
  std::unique_ptr<AdamW> optimizer, critic_optimizer;
  std::unique_ptr<Algorithm> algorithm;
  std::vector<int64_t> asked;
};

inline double first_token_reward(int64_t, int64_t completion) { return completion % 2 == 0 ? 1.0 : 0.0; }

}  // namespace temper
