#include "config/table.h"

#include "core/format.h"

namespace temper {
namespace {

Field field_of(bool& field) { return &field; }
Field field_of(int64_t& field) { return &field; }
Field field_of(double& field) { return &field; }
Field field_of(std::string& field) { return &field; }
Field field_of(std::optional<bool>& field) { return &field; }
Field field_of(std::vector<std::string>& field) { return &field; }
Field field_of(std::vector<double>& field) { return &field; }
Field field_of(std::array<double, 2>& field) { return &field; }
Field field_of(std::map<std::string, RejectionBound>& field) { return &field; }
template <class Enum>
requires std::is_enum_v<Enum> Field field_of(Enum& field) {
  return ChoiceField{choice_names<Enum>(), [&field] { return static_cast<size_t>(field); },
                     [&field](size_t index) { field = static_cast<Enum>(index); }};
}
template <class Enum>
requires std::is_enum_v<Enum> Field field_of(std::optional<Enum>& field) {
  return ChoiceField{choice_names<Enum>(),
                     [&field]() -> std::optional<size_t> {
                       if (!field) return std::nullopt;
                       return static_cast<size_t>(*field);
                     },
                     [&field](size_t index) { field = static_cast<Enum>(index); }};
}

class TableBuilder {
 public:
  KeySpec& key(std::string_view name, std::function<Field(Sections&)> field, std::string_view help) {
    KeySpec spec;
    spec.name = name;
    spec.field = std::move(field);
    spec.help = help;
    rows.push_back(std::move(spec));
    return rows.back();
  }
  std::vector<KeySpec> rows;
};

// The member's path is the key's name.
#define TEMPER_KEY(path, help) \
  table.key(                   \
      #path, [](Sections& sections) { return field_of(sections.path); }, help)

void add_run(TableBuilder& table) {
  TEMPER_KEY(run.name, "Name of the run: its folder below run.dir.")
      .by_default("the configuration file's stem")
      .whole_run();
  TEMPER_KEY(run.dir, "Folder that holds the runs.").whole_run();
  TEMPER_KEY(run.seed, "Seed of every random draw: new weights, shuffling, generated problems, token draws.")
      .at_least(0);
  TEMPER_KEY(run.deterministic,
             "Same binary, configuration and threads give the same bits; resuming continues bit for bit.")
      .whole_run();
  TEMPER_KEY(run.device,
             "Where tensors live and are computed with; auto: a GPU where this build and the machine have one.")
      .whole_run();
  TEMPER_KEY(run.dtype,
             "Compute type; master weights are f32. auto: bf16 on a GPU and where the CPU multiplies it, else f32.");
}

void add_model(TableBuilder& table) {
  TEMPER_KEY(model.path,
             "Hugging Face directory (config.json, safetensors, tokenizer.json) to start from, or \"stage:NAME\": what"
             " that earlier stage made.")
      .by_default("none: model.init; in later stages the model of the last stage before that is no reward_model stage");
  TEMPER_KEY(model.init.family, "Starts from a new model with random weights, of this family; excludes model.path.")
      .one_of({"llama", "qwen2", "qwen3"})
      .by_default("none: model.path");
  TEMPER_KEY(model.init.hidden_size, "Width of the residual stream.").at_least(1);
  TEMPER_KEY(model.init.intermediate_size, "Width of the MLP.")
      .at_least(0)
      .by_default("0: 8/3 of hidden_size, rounded up to a multiple of 32");
  TEMPER_KEY(model.init.num_layers, "Transformer blocks.").at_least(1);
  TEMPER_KEY(model.init.num_heads, "Query heads.").at_least(1);
  TEMPER_KEY(model.init.num_kv_heads, "Key and value heads; must divide num_heads.")
      .at_least(0)
      .by_default("0: num_heads");
  TEMPER_KEY(model.init.head_dim, "Width of a head; even.").at_least(0).by_default("0: hidden_size / num_heads");
  TEMPER_KEY(model.init.vocab_size, "Rows of the embedding.").at_least(0).by_default("0: the tokenizer's");
  TEMPER_KEY(model.init.max_position_embeddings, "Longest sequence.").unit("tokens").at_least(1);
  TEMPER_KEY(model.init.rope_theta, "Base of the rotary frequencies.").above(0);
  TEMPER_KEY(model.init.rms_norm_eps, "Added to the mean square in RMSNorm.").above(0);
  TEMPER_KEY(model.init.tie_word_embeddings, "The output layer shares the embedding's weights.");
  TEMPER_KEY(model.init.tokenizer, "\"byte\" (one token a byte), or a directory with tokenizer.json.");
  TEMPER_KEY(model.reference,
             "Frozen reference policy of the KL term, of dpo and of ipo: a Hugging Face directory, or \"stage:NAME\".")
      .by_default("the model at the stage's start");
  TEMPER_KEY(model.teacher, "Teacher, for distillation: a Hugging Face directory, or \"stage:NAME\".")
      .by_default("none");
}

void add_data(TableBuilder& table) {
  TEMPER_KEY(data.path,
             "JSONL file of prompts (rollouts), of prompts with completions (sft) or of pairs (dpo, ipo,"
             " reward_model); formats in docs/data_formats.md.")
      .by_default("none: data.task");
  TEMPER_KEY(data.task, "Generated, seeded problems instead of a file; excludes data.path.")
      .one_of({"arithmetic", "add1", "chain_sum", "sort", "copy", "reverse", "count"})
      .by_default("none: data.path");
  TEMPER_KEY(data.eval_path, "JSONL file of the held-out problems that evaluation answers.")
      .by_default("a task's held-out problems; none for a file");
  TEMPER_KEY(data.prompt_field, "Field of a JSONL line that holds the prompt: a string, or a list of messages.");
  TEMPER_KEY(data.answer_field, "Field that holds the answer which rewards compare with.");
  TEMPER_KEY(data.completion_field, "Field that holds the completion that sft learns.");
  TEMPER_KEY(data.prompt_template, "Text around each prompt; {prompt} or another field's name in braces stands for it.")
      .by_default("the prompt as it is");
  TEMPER_KEY(data.max_prompt_length, "Longest prompt, chat template included; 0: no limit.").unit("tokens").at_least(0);
  TEMPER_KEY(data.held_out_share, "Share of a file's prompts that is held out for evaluation, by a hash of their text.")
      .at_least(0)
      .below(1);
  TEMPER_KEY(data.shuffle,
             "Shuffles the data anew in each pass; off: in file order. A generated task is random already.");
  TEMPER_KEY(data.generated.seed, "Seed of a generated task's problems; run.seed does not change them.").at_least(0);
  TEMPER_KEY(data.generated.max_operand, "arithmetic, chain_sum: numbers lie in 0 to this.").at_least(1);
  TEMPER_KEY(data.generated.num_items, "chain_sum: terms; sort, copy, reverse, count: letters.").at_least(1);
  TEMPER_KEY(data.generated.num_worked, "Worked problems that sft learns from; pairs for dpo, ipo and reward_model.")
      .at_least(1);
  TEMPER_KEY(
      data.generated.worked_error_share,
      "arithmetic, chain_sum: share of worked problems whose answer is one too large, as from a careless teacher.")
      .at_least(0)
      .below(1);
  TEMPER_KEY(data.generated.held_out_share,
             "Share of all problems that evaluation keeps to itself; add1 has fixed sets.")
      .above(0)
      .below(1);
}

void add_eval(TableBuilder& table) {
  TEMPER_KEY(eval.every_steps, "Evaluates every so many steps, beside before the first and after the last.")
      .unit("steps")
      .at_least(0)
      .by_default("0: at start and end only");
  TEMPER_KEY(eval.num_prompts, "Held-out problems to answer, at most; 0: no evaluation.").at_least(0);
  TEMPER_KEY(eval.num_completions, "Completions a problem: the k of avg@k and pass@k.").at_least(1);
  TEMPER_KEY(eval.temperature, "Sampling temperature of evaluation; 0 is greedy.").at_least(0);
  TEMPER_KEY(eval.bits_per_char_path, "Text file whose bits per character are measured before and after a stage.")
      .by_default("none");
}

void add_rollout(TableBuilder& table) {
  TEMPER_KEY(
      rollout.source,
      "Where completions come from. inline: each trainer rank generates its share; hub: rollout workers bring them"
      " (docs/async.md); auto: hub where rollout.workers is above 0, else inline.");
  TEMPER_KEY(rollout.num_generations, "Completions a prompt: the size of a group.").at_least(1);
  TEMPER_KEY(rollout.max_completion_length, "Longest completion.").unit("tokens").at_least(1);
  TEMPER_KEY(rollout.temperature, "Sampling temperature; the losses' log-probabilities are at this temperature too.")
      .at_least(0);
  TEMPER_KEY(rollout.top_p, "Draws from the smallest set of tokens with this much probability; 1: all.")
      .between(0, 1)
      .above(0);
  TEMPER_KEY(rollout.top_k, "Draws from this many most likely tokens; 0: all.").at_least(0);
  TEMPER_KEY(rollout.min_p, "Leaves out tokens below this share of the most likely one's probability; 0: none.")
      .between(0, 1);
  TEMPER_KEY(rollout.stop, "Texts that end a completion.");
  TEMPER_KEY(rollout.workers,
             "Rollout worker processes that `temper run` starts on this machine; others join with `temper rollout`.")
      .at_least(0)
      .whole_run();
  TEMPER_KEY(rollout.max_num_seqs, "Sequences that the engine runs at once.").at_least(1);
  TEMPER_KEY(rollout.kv_cache_memory, "Bound of the cache of keys and values.")
      .unit("MiB")
      .at_least(0)
      .by_default("0: what max_num_seqs sequences need, at most half the free memory");
  TEMPER_KEY(rollout.block_size, "Tokens a cache block.").unit("tokens").at_least(1);
  TEMPER_KEY(rollout.enable_prefix_sharing, "A group computes and stores its prompt once.");
  TEMPER_KEY(rollout.enable_chunked_prefill, "Long prompts take several steps, beside sequences that generate.");
  TEMPER_KEY(
      rollout.dtype,
      "Compute type of generation; auto: run.dtype, with one copy of the weights for rollouts and training. int8:"
      " weights of one byte, in a copy of their own. Where the types differ, algo.rollout_is becomes token (gmpo:"
      " sequence) unless it is given.");
  TEMPER_KEY(rollout.teacher_share,
             "Distillation: share of a step's prompts whose completions the teacher generates, which is off-policy.")
      .between(0, 1);
}

void add_environment(TableBuilder& table) {
  TEMPER_KEY(rollout.environment,
             "Completions of several turns: what answers the policy's tool calls. calculator: <calc>2*21</calc> is"
             " followed by <result>42</result>. Such tokens are not trained on.");
  TEMPER_KEY(rollout.max_turns, "Turns that the environment answers; then the completion ends.").at_least(1);
}

void add_reward(TableBuilder& table) {
  TEMPER_KEY(reward.functions, "Reward functions; the first decides what evaluation counts as correct.")
      .one_of({"exact", "numeric", "regex", "format", "length", "task", "model", "command", "code"})
      .by_default("[\"task\"] with data.task, else none");
  TEMPER_KEY(reward.weights, "Weight of each reward function in the sum.").by_default("1 each");
  TEMPER_KEY(reward.timeout_s,
             "Time that one function gets for one group; late completions count as failed, never as 0.")
      .unit("s")
      .above(0);
  TEMPER_KEY(reward.model,
             "model: the reward model, a Hugging Face directory of a ...ForSequenceClassification with one label, or"
             " \"stage:NAME\" of a reward_model stage.")
      .by_default("none");
  TEMPER_KEY(reward.command,
             "command: a program (for /bin/sh) that reads one JSON line a completion and prints one with its reward;"
             " docs/rewards.md.")
      .by_default("none");
  TEMPER_KEY(reward.processes, "command, code: programs that run at once.").between(1, 1024);
  TEMPER_KEY(reward.code.tests_field, "code: field of the prompt's line that holds the tests.");
  TEMPER_KEY(reward.code.timeout_s, "code: time of one program with one test; slower ones fail it.").unit("s").above(0);
  TEMPER_KEY(reward.code.memory_mb, "code: memory of one program.").unit("MiB").at_least(16);
  TEMPER_KEY(reward.numeric.tolerance, "numeric: largest difference from the answer that counts as equal.").at_least(0);
  TEMPER_KEY(reward.regex.pattern,
             "regex: 1 where this pattern (PCRE2) is found; with a group (?<answer>...), where the last match's group"
             " is the answer.");
  TEMPER_KEY(reward.format.pattern, "format: 1 where this pattern (PCRE2) matches the whole completion.");
  TEMPER_KEY(reward.length.target,
             "length: 1 at this length, falling in a straight line to 0 at none and at twice as many.")
      .unit("tokens")
      .at_least(0);
}

void add_algo(TableBuilder& table) {
  TEMPER_KEY(algo.preset, "A bundle of the keys below; a key that is given wins over it.");
  TEMPER_KEY(algo.adv_estimator, "How rewards become advantages.");
  TEMPER_KEY(algo.scale_rewards, "Divides advantages by the standard deviation of the group, of the batch, or not.");
  TEMPER_KEY(algo.advantage_eps, "Added to that standard deviation.").at_least(0);
  TEMPER_KEY(algo.whiten_advantages, "Whitens advantages over the batch's tokens.")
      .by_default("true for gae, reinforce_plus_plus, reinforce_plus_plus_baseline, gdpo; else false");
  TEMPER_KEY(algo.gamma, "Discount a token (gae, reinforce_plus_plus).").between(0, 1);
  TEMPER_KEY(algo.lam, "Lambda of generalised advantage estimation (gae).").between(0, 1);
  TEMPER_KEY(algo.gae_skip_masked, "gae steps over masked tokens instead of treating them as steps without reward.");
  TEMPER_KEY(algo.filter_groups, "Leaves out groups whose rewards are all equal, and draws others in their place.");
  TEMPER_KEY(algo.overlong_buffer.len, "The last so many tokens before max_completion_length are penalised; 0: off.")
      .unit("tokens")
      .at_least(0);
  TEMPER_KEY(algo.overlong_buffer.penalty_factor, "Penalty at the end of that buffer.");
  TEMPER_KEY(algo.mask_truncated_completions, "Completions that were cut off do not enter the loss.");
  TEMPER_KEY(algo.policy_loss, "The loss of the policy.");
  TEMPER_KEY(algo.loss_agg_mode, "How token losses are averaged.");
  TEMPER_KEY(algo.clip_ratio_low, "The ratio is clipped below at 1 - this.").at_least(0);
  TEMPER_KEY(algo.clip_ratio_high, "The ratio is clipped above at 1 + this.").at_least(0);
  TEMPER_KEY(algo.clip_ratio_c, "Dual clip: bounds the loss of bad tokens at this ratio; 0: off.").off_or_above(1);
  TEMPER_KEY(algo.cispo_bound, "cispo: bounds around 1, or the ratio itself.");
  TEMPER_KEY(algo.sapo_tau_pos, "sapo: gate temperature of tokens with positive advantage.").above(0);
  TEMPER_KEY(algo.sapo_tau_neg, "sapo: gate temperature of the others.").above(0);
  TEMPER_KEY(algo.clip_cov_ratio, "clip_cov: share of the tokens that are detached.").at_least(0);
  TEMPER_KEY(algo.clip_cov_lb, "clip_cov: lower bound of the covariance of a detached token.");
  TEMPER_KEY(algo.clip_cov_ub, "clip_cov: upper bound of that covariance.");
  TEMPER_KEY(algo.kl_cov_ratio, "kl_cov: share of the tokens that get the KL penalty.").at_least(0);
  TEMPER_KEY(algo.kl_cov_coef, "kl_cov: coefficient of that penalty.").at_least(0);
  TEMPER_KEY(algo.kl_coef, "Coefficient of the KL divergence from the reference; above 0 it loads a reference model.")
      .at_least(0);
  TEMPER_KEY(algo.kl_estimator, "Estimator of the KL divergence; a + takes its gradient from k2.");
  TEMPER_KEY(algo.kl_clamp, "Bounds k3 as verl does.");
  TEMPER_KEY(algo.kl_placement, "The KL term is part of the loss, or of the reward.");
  TEMPER_KEY(algo.kl_ctrl.type, "Keeps kl_coef, or adapts it.");
  TEMPER_KEY(algo.kl_ctrl.target, "adaptive: the KL to hold.").above(0);
  TEMPER_KEY(algo.kl_ctrl.horizon, "adaptive: completions in which the coefficient follows.")
      .unit("completions")
      .above(0);
  TEMPER_KEY(algo.entropy_coef, "Coefficient of the entropy bonus.");
  TEMPER_KEY(algo.rollout_is, "Corrects the mismatch of sampler and trainer by importance weights.");
  TEMPER_KEY(algo.rollout_is_mode, "What happens to weights out of bounds: truncate clamps them, mask sets 0.");
  TEMPER_KEY(algo.rollout_is_max, "Upper bound of the weights.").above(0);
  TEMPER_KEY(algo.rollout_is_min, "Lower bound of the weights; at most rollout_is_max.").at_least(0);
  TEMPER_KEY(algo.rollout_rs, "Rejects tokens or completions by their mismatch: table from test to bound.")
      .by_default("{}: no test");
  TEMPER_KEY(algo.rollout_rs_denominator, "Averages count the tokens kept, or all.");
  TEMPER_KEY(algo.value_clip, "gae: the critic moves at most this far in a step; 0: off.").at_least(0);
  TEMPER_KEY(algo.vf_coef, "gae: coefficient of the value loss.");
  TEMPER_KEY(algo.distill_coef, "Weight of the teacher's log-ratio in the advantage.").at_least(0);
  TEMPER_KEY(algo.distill_discount, "Discount a token of what comes after in that term.").between(0, 1);
  TEMPER_KEY(algo.distill_loss, "Loss between the teacher's and the student's distributions.");
  TEMPER_KEY(algo.distill_loss_coef, "Coefficient of distill_loss.").at_least(0);
  TEMPER_KEY(algo.distill_beta, "jsd: share of the teacher in the mixture.").between(0, 1);
  TEMPER_KEY(algo.distill_temperature, "Temperature of both distributions.").above(0);
  TEMPER_KEY(algo.distill_top_k, "forward_kl: sums over the teacher's most likely tokens only; 0: all.").at_least(0);
  TEMPER_KEY(algo.dpo_beta, "dpo, ipo: strength of the preference.").above(0);
  TEMPER_KEY(algo.label_smoothing, "dpo: probability that a preference is the wrong way round.").between(0, 1);
  TEMPER_KEY(algo.num_epochs, "Passes over a step's batch.").at_least(1);
  TEMPER_KEY(algo.num_minibatches, "Optimiser updates a pass.").at_least(1);
  TEMPER_KEY(algo.max_refills, "filter_groups: how often a step asks for more prompts to fill its batch.").at_least(0);
  TEMPER_KEY(algo.early_stop_kl, "Ends a step's updates once ppo_kl exceeds this; 0: never.").at_least(0);
}

void add_train(TableBuilder& table) {
  TEMPER_KEY(train.num_prompts_per_step, "Prompts a step; sft: examples a step; dpo, ipo, reward_model: pairs a step.")
      .at_least(1);
  TEMPER_KEY(train.max_steps, "Steps of the stage.").unit("steps").at_least(1);
  TEMPER_KEY(train.max_tokens_per_micro_batch, "Sequences are packed into micro-batches of so many tokens.")
      .unit("tokens")
      .at_least(1);
  TEMPER_KEY(train.recompute, "Recomputes each block's activations in the backward pass: less memory, more time.");
  TEMPER_KEY(
      train.shard,
      "What is split over the ranks: nothing; AdamW's moments (ZeRO-1); or weights, gradients and moments (ZeRO-3),"
      " gathered block by block, which recomputes activations.");
  TEMPER_KEY(
      train.tensor_parallel,
      "Neighbouring ranks that share each layer: heads, MLP and vocabulary. Divides the model's key/value heads.")
      .at_least(1);
  TEMPER_KEY(train.replicas,
             "Copies of the sharded model (HSDP): neighbouring ranks share one, and the copies sum their gradients.")
      .at_least(1);
  TEMPER_KEY(train.ranks,
             "Trainer processes, each with a copy of the model; `temper run` starts them with mpirun on this machine."
             " With `temper train` under mpirun or srun, 1 stands for as many as were started.")
      .at_least(1)
      .whole_run();
  TEMPER_KEY(train.comm_timeout_s, "An operation among the ranks that takes longer ends them all.")
      .unit("s")
      .above(0)
      .whole_run();
  TEMPER_KEY(train.max_restarts,
             "How often `temper run` starts the ranks again, from the newest checkpoint, after one was killed or lost"
             " the others.")
      .at_least(0)
      .whole_run();
}

void add_optim(TableBuilder& table) {
  TEMPER_KEY(optim.learning_rate, "Learning rate of AdamW.").at_least(0);
  TEMPER_KEY(optim.lr_scheduler_type, "Course of the learning rate after the warm-up; linear and cosine end at 0.");
  TEMPER_KEY(optim.warmup_steps, "The learning rate rises linearly over these steps.").unit("steps").at_least(0);
  TEMPER_KEY(optim.betas, "AdamW's decay rates of the two moments.").at_least(0).below(1);
  TEMPER_KEY(optim.eps, "AdamW's epsilon.").above(0);
  TEMPER_KEY(optim.weight_decay, "Decoupled weight decay.").at_least(0);
  TEMPER_KEY(optim.max_grad_norm, "Gradients are scaled down to this norm; 0: never.").at_least(0);
}

void add_critic(TableBuilder& table) {
  TEMPER_KEY(critic.path,
             "The critic at the stage's start, such as a reward model: a Hugging Face directory, or \"stage:NAME\".")
      .by_default("none: the policy's body with a new head");
  TEMPER_KEY(critic.shared_backbone, "The critic is a second head on the policy's body, trained by its optimiser.");
  TEMPER_KEY(critic.learning_rate, "Learning rate of the critic's own AdamW.")
      .at_least(0)
      .by_default("0: optim.learning_rate");
}

void add_rest(TableBuilder& table) {
  TEMPER_KEY(async.max_staleness,
             "Policy versions that the oldest token of a group may be behind the trainer's weights. 0: on-policy, the"
             " trainer waits. Above 0 algo.rollout_is becomes token (gmpo: sequence) unless it is given.")
      .unit("versions")
      .at_least(0);
  TEMPER_KEY(async.staleness_policy,
             "What happens to a group that would become too old: drop generates its prompt again, wait holds a step"
             " back until the group was trained on.");
  TEMPER_KEY(async.in_flight_updates,
             "Workers take new weights between two engine steps, so that a completion may have tokens of several"
             " versions; off: when what they generate is finished.");
  TEMPER_KEY(async.lease_timeout_s, "A group that a worker has not brought after this is given to another worker.")
      .unit("s")
      .above(0);
  TEMPER_KEY(async.weight_transport,
             "How new weights reach rollout workers: messages, or nccl between the trainer's GPUs and those of workers"
             " (others, and whoever NCCL cannot reach, get messages).");
  TEMPER_KEY(async.bind,
             "Address or interface of this machine that the hub and the weights are reached at, HOST or HOST:PORT"
             " (the hub's port; by default free ones are taken).")
      .whole_run();
  TEMPER_KEY(async.keys,
             "Folder of the job's keys (temper keygen DIR makes one); none: plain text, on the loopback interface"
             " alone.")
      .by_default("keys in the run directory, made where missing")
      .whole_run();
  TEMPER_KEY(checkpoint.ram_dir,
             "Folder in memory (/dev/shm/NAME) for frequent checkpoints, one a stage, which outlive the process; they"
             " take the state's size twice while one is written. {rank} and {host} stand for the rank's own.")
      .by_default("none")
      .whole_run();
  TEMPER_KEY(checkpoint.ram_every_steps, "Saves in checkpoint.ram_dir every so many steps.").unit("steps").at_least(0);
  TEMPER_KEY(
      checkpoint.local_dir,
      "Folder of the checkpoints, shared by the ranks or on each node's own disk; {rank} and {host} stand for the"
      " rank's own.")
      .by_default("checkpoints in the run directory")
      .whole_run();
  TEMPER_KEY(checkpoint.local_every_steps, "Saves every so many steps, beside at a stage's end.")
      .unit("steps")
      .at_least(0);
  TEMPER_KEY(
      checkpoint.max_write_mb_per_s,
      "How fast a rank writes checkpoints beside the training; 0: no limit. None holds while the training waits for"
      " a checkpoint.")
      .unit("MB/s")
      .between(0, 1'000'000);
  TEMPER_KEY(checkpoint.keep_local, "Checkpoints of a stage that are kept.").at_least(2);
  TEMPER_KEY(checkpoint.durable_dir,
             "Folder that outlives the machine, seen by all ranks, for rare copies of local checkpoints, verified, made"
             " in the background.")
      .by_default("none")
      .whole_run();
  TEMPER_KEY(checkpoint.durable_every_steps,
             "Saves and copies to checkpoint.durable_dir every so many steps, beside at a stage's end and at a stop.")
      .unit("steps")
      .at_least(0);
  TEMPER_KEY(checkpoint.keep_durable, "Checkpoints of a stage that are kept in checkpoint.durable_dir.").at_least(2);
  TEMPER_KEY(checkpoint.replicate,
             "1: where checkpoint.local_dir and ram_dir are on each node's own disk, the next node holds a copy of a"
             " node's shards.")
      .between(0, 1)
      .whole_run();
  TEMPER_KEY(checkpoint.export_dtype, "Type of the exported model.")
      .by_default("auto: as the model was loaded, f32 for model.init")
      .whole_run();
  TEMPER_KEY(checkpoint.resume,
             "auto: continues from the newest good checkpoint of the run; never: starts afresh; else the"
             " path of a checkpoint.")
      .whole_run();
  TEMPER_KEY(checkpoint.allow_other_data, "Resumes although the data set is not the one of the checkpoint.")
      .whole_run();
  TEMPER_KEY(log.tensorboard, "Writes TensorBoard event files to tb in the run directory.").whole_run();
  TEMPER_KEY(log.every_steps, "Writes metrics every so many steps.").unit("steps").at_least(1);
  TEMPER_KEY(log.completions, "Completions of a step that go to completions.jsonl; 0: none.").at_least(0);
  TEMPER_KEY(log.prometheus,
             "HOST:PORT, such as 127.0.0.1:9464, where a Prometheus server finds the metrics, at /metrics; without"
             " password, by plain HTTP.")
      .by_default("none")
      .whole_run();
}

#undef TEMPER_KEY

}  // namespace

const std::vector<SectionSpec>& section_table() {
  static const std::vector<SectionSpec> kSections = {
      {"run", "The run as a whole."},
      {"model", "What is trained, and the frozen models beside it."},
      {"data", "Prompts and examples: a JSONL file or a generated task."},
      {"eval", "Held-out problems, answered before, during and after a stage."},
      {"rollout", "How completions are generated."},
      {"reward", "How completions are scored."},
      {"algo", "Losses and advantages; formulas in docs/algorithms.md."},
      {"train", "Steps and batches."},
      {"optim", "AdamW and its schedule."},
      {"critic", "The critic of algo.adv_estimator = gae."},
      {"async", "Rollout workers: how far they may run ahead, and where they find the hub."},
      {"checkpoint", "What is saved, and how a run resumes."},
      {"log", "What is written beside checkpoints."},
  };
  return kSections;
}

const std::vector<KeySpec>& key_table() {
  static const std::vector<KeySpec> kRows = [] {
    TableBuilder table;
    add_run(table);
    add_model(table);
    add_data(table);
    add_eval(table);
    add_rollout(table);
    add_environment(table);
    add_reward(table);
    add_algo(table);
    add_train(table);
    add_optim(table);
    add_critic(table);
    add_rest(table);
    return std::move(table.rows);
  }();
  return kRows;
}

const KeySpec* find_key(std::string_view name) {
  for (const KeySpec& key : key_table())
    if (key.name == name) return &key;
  return nullptr;
}

KeySpec& KeySpec::unit(std::string_view text) { return unit_text = text, *this; }
KeySpec& KeySpec::at_least(double low) { return range.low = low, *this; }
KeySpec& KeySpec::above(double low) { return range.low = low, range.open_low = true, *this; }
KeySpec& KeySpec::between(double low, double high) { return range.low = low, range.high = high, *this; }
KeySpec& KeySpec::below(double high) { return range.high = high, range.open_high = true, *this; }
KeySpec& KeySpec::off_or_above(double low) { return range.zero_is_off = true, above(low); }
KeySpec& KeySpec::one_of(std::vector<std::string> allowed) { return words = std::move(allowed), *this; }
KeySpec& KeySpec::by_default(std::string_view note) { return default_note = note, *this; }
KeySpec& KeySpec::whole_run() { return for_run = true, *this; }

bool Range::contains(double value) const {
  if (zero_is_off && value == 0) return true;
  return (open_low ? value > low : value >= low) && (open_high ? value < high : value <= high);
}

std::string Range::text() const {
  const bool has_low = low > -std::numeric_limits<double>::infinity();
  const bool has_high = high < std::numeric_limits<double>::infinity();
  const std::string_view or_zero = zero_is_off ? "0, or " : "";
  if (has_low && has_high && low == high) return format("{}", low);
  if (has_low && has_high)
    return format("{}in {}{}, {}{}", or_zero, open_low ? "(" : "[", low, high, open_high ? ")" : "]");
  if (has_low) return open_low ? format("{}greater than {}", or_zero, low) : format("{}{} or greater", or_zero, low);
  return "";
}

}  // namespace temper
