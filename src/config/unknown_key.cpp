// What to say about a key that does not exist: our name for it where it is TRL's or verl's, else the nearest of ours.
#include <map>
#include <set>

#include "config/table.h"
#include "core/format.h"
#include "core/nearest_name.h"

namespace temper {
namespace {

// By the last part of the key, as TRL, verl and their kin spell it.
const std::map<std::string, std::string, std::less<>>& foreign_names() {
  static const std::map<std::string, std::string, std::less<>> kNames = {
      {"actor_lr", "optim.learning_rate"},
      {"adam_beta1", "optim.betas"},
      {"adam_beta2", "optim.betas"},
      {"adam_betas", "optim.betas"},
      {"adam_epsilon", "optim.eps"},
      {"advantage_estimator", "algo.adv_estimator"},
      {"beta", "algo.kl_coef"},
      {"bf16", "run.dtype"},
      {"clip_eps", "algo.clip_ratio_low"},
      {"clip_grad", "optim.max_grad_norm"},
      {"clip_range", "algo.clip_ratio_low"},
      {"clip_range_value", "algo.value_clip"},
      {"clip_ratio", "algo.clip_ratio_low"},
      {"cliprange", "algo.clip_ratio_low"},
      {"cliprange_high", "algo.clip_ratio_high"},
      {"cliprange_low", "algo.clip_ratio_low"},
      {"cliprange_value", "algo.value_clip"},
      {"critic_learning_rate", "critic.learning_rate"},
      {"critic_lr", "critic.learning_rate"},
      {"critic_path", "critic.path"},
      {"dataset_name", "data.path"},
      {"dataset_path", "data.path"},
      {"default_local_dir", "checkpoint.local_dir"},
      {"delta", "algo.clip_ratio_c"},
      {"entropy_coeff", "algo.entropy_coef"},
      {"eps_clip", "algo.clip_ratio_low"},
      {"eps_clip_high", "algo.clip_ratio_high"},
      {"eps_clip_low", "algo.clip_ratio_low"},
      {"epsilon", "algo.clip_ratio_low"},
      {"epsilon_high", "algo.clip_ratio_high"},
      {"epsilon_low", "algo.clip_ratio_low"},
      {"eval_steps", "eval.every_steps"},
      {"experiment_name", "run.name"},
      {"fp16", "run.dtype"},
      {"gamma_discount", "algo.gamma"},
      {"global_batch_size", "train.num_prompts_per_step"},
      {"grad_clip", "optim.max_grad_norm"},
      {"gradient_accumulation_steps", "train.max_tokens_per_micro_batch"},
      {"gradient_checkpointing", "train.recompute"},
      {"group_size", "rollout.num_generations"},
      {"importance_sampling_level", "algo.policy_loss"},
      {"init_kl_coef", "algo.kl_coef"},
      {"kl_beta", "algo.kl_coef"},
      {"kl_loss_coef", "algo.kl_coef"},
      {"kl_loss_type", "algo.kl_estimator"},
      {"kl_penalty", "algo.kl_estimator"},
      {"lambd", "algo.lam"},
      {"lambda", "algo.lam"},
      {"lambda_", "algo.lam"},
      {"log_completions", "log.completions"},
      {"log_every", "log.every_steps"},
      {"logging_steps", "log.every_steps"},
      {"loss_mode", "algo.policy_loss"},
      {"loss_type", "algo.loss_agg_mode"},
      {"lr", "optim.learning_rate"},
      {"lr_scheduler", "optim.lr_scheduler_type"},
      {"lr_warmup_steps", "optim.warmup_steps"},
      {"max_new_tokens", "rollout.max_completion_length"},
      {"max_norm", "optim.max_grad_norm"},
      {"max_num_gen_batches", "algo.max_refills"},
      {"max_response_length", "rollout.max_completion_length"},
      {"max_tokens", "rollout.max_completion_length"},
      {"micro_batch_size", "train.max_tokens_per_micro_batch"},
      {"model_name_or_path", "model.path"},
      {"n", "rollout.num_generations"},
      {"n_samples_per_prompt", "rollout.num_generations"},
      {"norm_adv_by_std_in_grpo", "algo.scale_rewards"},
      {"num_generation", "rollout.num_generations"},
      {"num_iterations", "algo.num_epochs"},
      {"num_mini_batches", "algo.num_minibatches"},
      {"num_ppo_epochs", "algo.num_epochs"},
      {"off_policy_mask_threshold", "algo.rollout_rs"},
      {"output_dir", "run.dir"},
      {"overlong_buffer_cfg", "algo.overlong_buffer.len"},
      {"per_device_batch_size", "train.num_prompts_per_step"},
      {"per_device_train_batch_size", "train.num_prompts_per_step"},
      {"ppo_epochs", "algo.num_epochs"},
      {"ppo_max_token_len_per_gpu", "train.max_tokens_per_micro_batch"},
      {"ppo_micro_batch_size", "train.max_tokens_per_micro_batch"},
      {"ppo_micro_batch_size_per_gpu", "train.max_tokens_per_micro_batch"},
      {"ppo_mini_batch_size", "algo.num_minibatches"},
      {"precision", "run.dtype"},
      {"prompt_key", "data.prompt_field"},
      {"ref_model", "model.reference"},
      {"reference_model", "model.reference"},
      {"report_to", "log.tensorboard"},
      {"response_key", "data.completion_field"},
      {"response_length", "rollout.max_completion_length"},
      {"resume_from_checkpoint", "checkpoint.resume"},
      {"resume_mode", "checkpoint.resume"},
      {"reward_funcs", "reward.functions"},
      {"reward_model", "reward.model"},
      {"reward_model_path", "reward.model"},
      {"reward_weights", "reward.weights"},
      {"rollout_batch_size", "train.num_prompts_per_step"},
      {"run_name", "run.name"},
      {"sapo_temperature_neg", "algo.sapo_tau_neg"},
      {"sapo_temperature_pos", "algo.sapo_tau_pos"},
      {"save_freq", "checkpoint.local_every_steps"},
      {"save_steps", "checkpoint.local_every_steps"},
      {"save_total_limit", "checkpoint.keep_local"},
      {"seq_kd", "rollout.teacher_share"},
      {"shuffle_dataset", "data.shuffle"},
      {"steps_per_generation", "algo.num_minibatches"},
      {"target_kl", "algo.kl_ctrl.target"},
      {"teacher_model_name_or_path", "model.teacher"},
      {"tensor_model_parallel_size", "train.tensor_parallel"},
      {"tensor_parallel_size", "train.tensor_parallel"},
      {"test_freq", "eval.every_steps"},
      {"tis_imp_ratio_cap", "algo.rollout_is_max"},
      {"torch_dtype", "run.dtype"},
      {"total_episodes", "train.max_steps"},
      {"total_epochs", "train.max_steps"},
      {"total_training_steps", "train.max_steps"},
      {"train_batch_size", "train.num_prompts_per_step"},
      {"train_files", "data.path"},
      {"use_kl_in_reward", "algo.kl_placement"},
      {"use_kl_loss", "algo.kl_placement"},
      {"val_files", "data.eval_path"},
      {"value_loss_coef", "algo.vf_coef"},
      {"vllm_importance_sampling_clip_max", "algo.rollout_is_max"},
      {"vllm_importance_sampling_clip_min", "algo.rollout_is_min"},
      {"vllm_importance_sampling_correction", "algo.rollout_is"},
      {"vllm_importance_sampling_mode", "algo.rollout_is_mode"},
      {"warmup_ratio", "optim.warmup_steps"},
      {"whiten_rewards", "algo.whiten_advantages"},
  };
  return kNames;
}

// Known to the documents, without effect in this version, so not accepted.
const std::set<std::string, std::less<>>& later_names() {
  static const std::set<std::string, std::less<>> kNames = {"async.recompute_kv_cache"};
  return kNames;
}

std::string_view last_part(std::string_view name) { return name.substr(name.rfind('.') + 1); }

}  // namespace

std::string unknown_key_message(std::string_view name) {
  if (later_names().contains(name)) return format("unknown key {}: this version does not have it. Remove it.", name);
  std::vector<std::string> names;
  for (const KeySpec& key : key_table()) {
    if (last_part(key.name) == last_part(name) && key.name.find('.') == key.name.rfind('.'))
      return format("unknown key {}: here it is {}", name, key.name);  // the right word in the wrong section
    names.push_back(key.name);
  }
  if (const auto found = foreign_names().find(last_part(name)); found != foreign_names().end())
    return format("unknown key {}: here it is {}", name, found->second);
  return format("unknown key {}: the nearest is {}", name, nearest_name(name, names));
}

}  // namespace temper
