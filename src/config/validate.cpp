#include "config/validate.h"

#include <algorithm>
#include <charconv>
#include <set>

#include "config/algo_rules.h"
#include "config/stage_models.h"
#include "core/format.h"

namespace temper {
namespace {

using Messages = std::vector<std::string>;

void check_model(const StageConfig& s, Messages* out) {
  if (!s.own_model && !stage_reference(s.model.path)) return;
  const ModelInit& init = s.model.init;
  const bool has_init = !init.family.empty();
  if (s.model.path.empty() && !has_init) {
    if (init == ModelInit())
      out->push_back(
          "model.path and model.init are both missing. Set model.path to a Hugging Face directory, or model.init to"
          " {family = \"llama\", hidden_size = 256, …} for a new model.");
    else
      out->push_back("model.init.family is missing. Allowed: llama, qwen2, qwen3.");
  }
  if (!s.model.path.empty() && init != ModelInit())
    out->push_back(format("model.path = \"{}\" and model.init exclude each other. Remove one of them.", s.model.path));
  if (!has_init) return;
  const int64_t num_kv_heads = init.num_kv_heads ? init.num_kv_heads : init.num_heads;
  if (init.num_heads % num_kv_heads != 0)
    out->push_back(format("model.init.num_kv_heads = {} does not divide model.init.num_heads = {}. Choose a divisor.",
                          num_kv_heads, init.num_heads));
  if (init.head_dim == 0 && init.hidden_size % init.num_heads != 0)
    out->push_back(
        format("model.init.hidden_size = {} is no multiple of model.init.num_heads = {}. Change one of them, or set"
               " model.init.head_dim.",
               init.hidden_size, init.num_heads));
  else if (const int64_t head_dim = init.head_dim ? init.head_dim : init.hidden_size / init.num_heads;
           head_dim % 2 != 0)
    out->push_back(format(
        "model.init.head_dim = {} is odd, and rotary positions turn pairs. Choose an even width of heads.", head_dim));
}

void check_data(const StageConfig& s, Messages* out) {
  const DataSection& d = s.data;
  if (d.path.empty() && d.task.empty())
    out->push_back(
        "data.path and data.task are both missing. Set data.path to a JSONL file, or data.task to a generated task"
        " such as \"arithmetic\".");
  if (!d.path.empty() && !d.task.empty())
    out->push_back(
        format("data.path = \"{}\" and data.task = \"{}\" exclude each other. Remove one of them.", d.path, d.task));
  if (!d.prompt_template.empty() && d.prompt_template.find('{') == std::string::npos)
    out->push_back(format("data.prompt_template = \"{}\" has no place for the prompt. Write {} in it.",
                          d.prompt_template, "{" + d.prompt_field + "}"));
}

// Distillation may do without rewards: its teacher says what is good.
bool learns_from_rewards(const StageConfig& s) {
  return s.algo.trains_on_rollouts() && (s.algo.adv_estimator != AdvEstimator::kNone || !s.algo.needs_teacher());
}

void check_rewards(const StageConfig& s, Messages* out) {
  const RewardSection& r = s.reward;
  if (r.functions.empty() && (learns_from_rewards(s) || evaluates(s))) {
    const std::string why = learns_from_rewards(s) ? format("the stage trains on rewards (algo.adv_estimator = {})",
                                                            to_string(s.algo.adv_estimator))
                                                   : std::string("evaluation counts the first function's 1 as correct");
    out->push_back(
        format("reward.functions is empty, but {}. Set it, for example to [\"exact\"] or [\"numeric\"].", why));
  }
  if (!r.weights.empty() && r.weights.size() != r.functions.size())
    out->push_back(
        format("reward.weights has {} entries and reward.functions has {}. Give one weight a function, or none.",
               r.weights.size(), r.functions.size()));
  const std::set<std::string> once(r.functions.begin(), r.functions.end());
  if (once.size() != r.functions.size())
    out->push_back(
        format("reward.functions = [{}] names a function twice. Name it once and raise its reward.weights entry.",
               join(r.functions)));
  const auto uses = [&once](const char* name) { return once.count(name) > 0; };
  if (uses("task") && s.data.task.empty())
    out->push_back(
        "reward.functions has \"task\", but data.task is not set. Use exact, numeric, regex, format or length with a"
        " data.path.");
  if (uses("regex") && r.regex.pattern.empty())
    out->push_back("reward.functions has \"regex\", but reward.regex.pattern is empty. Set the pattern to look for.");
  if (uses("format") && r.format.pattern.empty())
    out->push_back("reward.functions has \"format\", but reward.format.pattern is empty. Set the pattern to match.");
  if (uses("length") && r.length.target == 0)
    out->push_back("reward.functions has \"length\", but reward.length.target is 0. Set the length in tokens.");
  if (uses("model") && r.model.empty())
    out->push_back(
        "reward.functions has \"model\", but reward.model is empty. Set it to the directory of a reward model, or to"
        " \"stage:NAME\" of a reward_model stage before this one.");
  if (uses("command") && r.command.empty())
    out->push_back(
        "reward.functions has \"command\", but reward.command is empty. Set it to a program that reads one JSON line a"
        " completion and prints one with its reward.");
}

void check_critic(const StageConfig& s, Messages* out) {
  if (!s.algo.needs_critic()) return;
  if (s.critic.shared_backbone && !s.critic.path.empty())
    out->push_back(
        format("critic.path = \"{}\" and critic.shared_backbone = true exclude each other: a shared critic is a head"
               " on the policy's body. Remove one of them.",
               s.critic.path));
  const std::vector<double>& weights = s.reward.weights;
  const bool rewarded = weights.empty() || std::any_of(weights.begin(), weights.end(), [](double w) { return w != 0; });
  const bool kl_in_reward = s.algo.kl_coef > 0 && s.algo.kl_placement == KlPlacement::kReward;
  if (!rewarded && !kl_in_reward)
    out->push_back(
        "algo.adv_estimator = gae has no reward to learn values of: all reward.weights are 0. Raise one of them.");
}

void check_rollouts(const StageConfig& s, Messages* out) {
  if (!s.algo.trains_on_rollouts()) return;
  const RolloutSection& r = s.rollout;
  if (r.num_generations == 1 && s.algo.compares_group())
    out->push_back(
        format("rollout.num_generations = 1 leaves nothing to compare: algo.adv_estimator = {} takes advantages"
               " within a group, and all would be 0. Set rollout.num_generations to 2 or more, or"
               " algo.adv_estimator to reinforce_plus_plus or remax.",
               to_string(s.algo.adv_estimator)));
  if (r.temperature == 0)
    out->push_back(
        "rollout.temperature = 0 is greedy: all completions of a group would be the same and the loss's"
        " log-probabilities have no meaning. Set it above 0 in a stage that trains on rollouts"
        " (eval.temperature may be 0).");
  if (r.teacher_share > 0 && !s.algo.needs_teacher())
    out->push_back(
        format("rollout.teacher_share = {}, but nothing in [algo] distils, so there is no teacher. Set"
               " rollout.teacher_share to 0, or algo.preset to distill or gkd with model.teacher.",
               r.teacher_share));
  if (s.algo.overlong_buffer.len > r.max_completion_length)
    out->push_back(format("algo.overlong_buffer.len = {} exceeds rollout.max_completion_length = {}. Make it smaller.",
                          s.algo.overlong_buffer.len, r.max_completion_length));
}

void check_async(const StageConfig& s, Messages* out) {
  if (!s.algo.trains_on_rollouts()) return;
  const RolloutSection& r = s.rollout;
  const int64_t staleness = s.async.max_staleness;
  if (r.source == RolloutKind::kInline && r.workers > 0)
    out->push_back(
        format("rollout.source = \"inline\" has no use for rollout.workers = {}, which bring what they generate to the"
               " hub. Set rollout.source to \"auto\", or rollout.workers to 0.",
               r.workers));
  if (!s.uses_hub() && staleness > 0)
    out->push_back(
        format("async.max_staleness = {} needs rollout workers that run ahead of the trainer. Set rollout.workers to 1"
               " or more (rollout.source to \"hub\" where they are started elsewhere), or async.max_staleness to 0.",
               staleness));
  if (s.async.in_flight_updates && (!s.uses_hub() || staleness == 0))
    out->push_back(
        "async.in_flight_updates = true mixes policy versions within a completion, and async.max_staleness = 0 allows"
        " one alone. Set async.max_staleness to 1 or more with rollout.workers, or async.in_flight_updates to false.");
  if (s.async.weight_transport == WeightTransport::kNccl && s.run.device == Device::kCpu)
    out->push_back(
        "async.weight_transport = nccl goes between GPUs, and run.device = cpu computes on none. Set run.device to cuda"
        " or auto, or async.weight_transport to messages.");
  if (!s.uses_hub()) return;
  if (r.teacher_share > 0)
    out->push_back(
        format("rollout.teacher_share = {} cannot go with rollout workers, which hold the policy alone. Set"
               " rollout.teacher_share to 0, or rollout.workers to 0.",
               r.teacher_share));
  if (s.algo.adv_estimator == AdvEstimator::kRemax && staleness > 0)
    out->push_back(
        format("algo.adv_estimator = remax compares with a greedy completion of the same weights, and"
               " async.max_staleness = {} does not wait for it. Set async.max_staleness to 0, or another estimator.",
               staleness));
}

void check_engine(const StageConfig& s, Messages* out) {
  if (s.rollout.block_size % 16 != 0)
    out->push_back(format("rollout.block_size = {} is no multiple of 16. Round it to {}.", s.rollout.block_size,
                          (s.rollout.block_size + 15) / 16 * 16));
}

// HOST:PORT with an IPv6 address in brackets.
bool is_listen_address(const std::string& text) {
  const size_t colon = text.rfind(':');
  if (colon == 0 || colon == std::string::npos) return false;
  const std::string host = text.substr(0, colon), port = text.substr(colon + 1);
  const bool bracketed = host.front() == '[' && host.back() == ']';
  if (!bracketed && host.find(':') != std::string::npos) return false;
  int number = -1;
  const auto [end, error] = std::from_chars(port.data(), port.data() + port.size(), number);
  return error == std::errc() && end == port.data() + port.size() && number >= 0 && number <= 65535;
}

bool is_loopback(const std::string& listen_address) {
  return listen_address.starts_with("127.") || listen_address.starts_with("localhost:") ||
         listen_address.starts_with("[::1]:");
}

void check_train(const StageConfig& s, Messages* out) {
  const int64_t per_step = s.train.num_prompts_per_step * (s.algo.trains_on_rollouts() ? s.rollout.num_generations : 1);
  if (s.train.replicas > 1 && s.train.shard == Shard::kNone)
    out->push_back(
        format("train.replicas = {} are copies of a sharded model, and train.shard = \"none\" shards nothing. Set"
               " train.shard to \"optimizer\" or \"full\", or train.replicas to 1.",
               s.train.replicas));
  if (s.train.ranks > 1 && s.train.ranks % s.train.tensor_parallel != 0)
    out->push_back(
        format("train.ranks = {} cannot be grouped by train.tensor_parallel = {}. Make train.ranks a multiple of it.",
               s.train.ranks, s.train.tensor_parallel));
  else if (s.train.ranks > 1 && s.train.ranks / s.train.tensor_parallel % s.train.replicas != 0)
    out->push_back(format(
        "train.ranks = {}{} cannot be dealt out to train.replicas = {} evenly. Give a divisor.", s.train.ranks,
        s.train.tensor_parallel == 1 ? std::string()
                                     : format(" in groups of train.tensor_parallel = {}", s.train.tensor_parallel),
        s.train.replicas));
  if (s.algo.num_minibatches > per_step)
    out->push_back(
        format("algo.num_minibatches = {} is more than a step's {} completions (train.num_prompts_per_step = {})."
               " Lower it.",
               s.algo.num_minibatches, per_step, s.train.num_prompts_per_step));
  if (s.run.deterministic && s.async.max_staleness > 0)
    out->push_back(
        format("run.deterministic = true cannot go with async.max_staleness = {}, whose batches depend on timing."
               " Set async.max_staleness to 0.",
               s.async.max_staleness));
  if (s.algo.needs_teacher() && s.model.teacher.empty())
    out->push_back(format(
        "model.teacher is missing, and {}{} needs it. Set it to a Hugging Face directory, or to \"stage:NAME\" of"
        " a stage before this one.",
        s.algo.distill_coef > 0 ? "algo.distill_coef" : "algo.distill_loss",
        s.rollout.teacher_share > 0 ? " (and rollout.teacher_share)" : ""));
}

}  // namespace

Messages stage_conflicts(const StageConfig& stage) {
  Messages conflicts;
  check_model(stage, &conflicts);
  check_data(stage, &conflicts);
  check_rewards(stage, &conflicts);
  check_critic(stage, &conflicts);
  check_rollouts(stage, &conflicts);
  check_async(stage, &conflicts);
  check_engine(stage, &conflicts);
  check_train(stage, &conflicts);
  for (std::string& message : algo_conflicts(stage.algo)) conflicts.push_back(std::move(message));
  return conflicts;
}

Messages run_conflicts(const Config& config) {
  Messages conflicts;
  const CheckpointSection& checkpoint = config.checkpoint;
  const auto same = [&](const char* one, const std::string& folder, const char* other, const std::string& second) {
    if (!folder.empty() && folder == second)
      conflicts.push_back(format("{} and {} are both \"{}\". Give each tier a folder of its own.", one, other, folder));
  };
  same("checkpoint.ram_dir", checkpoint.ram_dir, "checkpoint.local_dir", checkpoint.local_dir);
  same("checkpoint.ram_dir", checkpoint.ram_dir, "checkpoint.durable_dir", checkpoint.durable_dir);
  same("checkpoint.local_dir", checkpoint.local_dir, "checkpoint.durable_dir", checkpoint.durable_dir);
  const std::string& address = config.log.prometheus;
  if (!address.empty() && !is_listen_address(address))
    conflicts.push_back(
        format("log.prometheus = \"{}\" is not HOST:PORT. Write an address of this machine and a port, for example"
               " \"127.0.0.1:9464\".",
               address));
  return conflicts;
}

Messages run_doubts(const Config& config) {
  const std::string& address = config.log.prometheus;
  if (!is_listen_address(address) || is_loopback(address)) return {};
  return {
      format("log.prometheus = \"{}\": whoever reaches this machine can read the metrics, there is no password. Bind"
             " it to 127.0.0.1 unless the network is yours alone.",
             address)};
}

Messages reference_conflicts(const Config& config, size_t stage) {
  Messages conflicts;
  const StageConfig& user = config.stages.at(stage);
  const auto earlier = [&](auto fits) {
    Messages names;
    for (size_t i = 0; i < stage; ++i)
      if (fits(config.stages[i])) names.push_back(config.stages[i].name);
    return names;
  };
  const auto any = [](const StageConfig&) { return true; };
  const auto is_policy = [](const StageConfig& s) { return !makes_reward_model(s); };
  for (const ModelUse& use : used_models(user)) {
    const auto name = stage_reference(use.path);
    if (!name) continue;
    const auto index = stage_index(config, *name);
    const std::string says = format("{} = \"{}\"", use.key, use.path);
    if (!index || *index >= stage) {
      const std::string_view problem = index ? "that stage does not come before this one" : "there is no such stage";
      conflicts.push_back(stage == 0 ? format("{}: no stage comes before this one. Give a directory.", says)
                                     : format("{}: {}. Name one of the earlier stages ({}), or give a directory.", says,
                                              problem, join(earlier(any))));
      continue;
    }
    const StageConfig& made = config.stages[*index];
    if (use.role == ModelRole::kReward && !makes_reward_model(made)) {
      const Messages names = earlier(makes_reward_model);
      conflicts.push_back(format(
          "{}: that stage makes no reward model (algo.policy_loss = {}). {}", says, to_string(made.algo.policy_loss),
          names.empty() ? "Put a stage with algo.preset = reward_model before this one, or give a directory."
                        : format("Name one that does: {}.", join(names))));
    }
    const bool needs_policy = use.role == ModelRole::kReference || use.role == ModelRole::kTeacher ||
                              (use.role == ModelRole::kStart && !makes_reward_model(user));
    if (needs_policy && makes_reward_model(made)) {
      const Messages names = earlier(is_policy);
      conflicts.push_back(format(
          "{}: that stage makes a reward model, which generates no text. {}", says,
          names.empty() ? "Give a directory." : format("Name another stage ({}), or give a directory.", join(names))));
    }
  }
  return conflicts;
}

Messages stage_doubts(const StageConfig& s) {
  Messages doubts;
  if (s.eval.temperature == 0 && s.eval.num_completions > 1)
    doubts.push_back(
        format("eval.num_completions = {} with eval.temperature = 0: greedy completions of a problem are all the"
               " same. Set eval.temperature above 0 for pass@k.",
               s.eval.num_completions));
  if (s.optim.warmup_steps > s.train.max_steps)
    doubts.push_back(
        format("optim.warmup_steps = {} exceeds train.max_steps = {}: the learning rate never reaches"
               " optim.learning_rate.",
               s.optim.warmup_steps, s.train.max_steps));
  if (s.data.generated != DataSection::Generated() && s.data.task.empty())
    doubts.push_back("[data.generated] has no effect: data.task is not set.");
  const RewardSection defaults;
  const auto uses = [&s](const char* name) {
    return std::find(s.reward.functions.begin(), s.reward.functions.end(), name) != s.reward.functions.end();
  };
  const auto doubt_parameter = [&](const char* name, bool changed) {
    if (changed && !uses(name))
      doubts.push_back(format("[reward.{}] has no effect: reward.functions does not have \"{}\".", name, name));
  };
  doubt_parameter("numeric", s.reward.numeric != defaults.numeric);
  doubt_parameter("regex", s.reward.regex != defaults.regex);
  doubt_parameter("format", s.reward.format != defaults.format);
  doubt_parameter("length", s.reward.length != defaults.length);
  if (evaluates(s) && !s.reward.functions.empty() && s.reward.functions.front() == "model")
    doubts.push_back(
        "reward.functions begins with \"model\", and evaluation counts the first function's 1 as correct: a reward"
        " model's score is seldom 1. Put a rule first, with weight 0 if it is not to be trained on.");
  if (s.algo.trains_on_rollouts() && s.rollout.teacher_share > 0)
    doubts.push_back(
        format("rollout.teacher_share = {}: that share of a step's prompts is answered by the teacher, which is"
               " off-policy. Set it to 0 for purely on-policy distillation.",
               s.rollout.teacher_share));
  const RolloutIs correction = correction_of_mismatch(s);
  if (correction != RolloutIs::kNone && s.algo.rollout_is == RolloutIs::kNone)
    doubts.push_back(
        format("{} with algo.rollout_is = none: the rollouts' other weights are not corrected for. Set"
               " algo.rollout_is = {}.",
               s.uses_hub() && s.async.max_staleness > 0 ? format("async.max_staleness = {}", s.async.max_staleness)
                                                         : format("rollout.dtype = {}", to_string(s.rollout.dtype)),
               to_string(correction)));
  if (s.algo.needs_critic() && s.critic.shared_backbone && s.critic.learning_rate > 0)
    doubts.push_back(
        format("critic.learning_rate = {} has no effect: with critic.shared_backbone = true the policy's optimiser"
               " trains the critic too.",
               s.critic.learning_rate));
  return doubts;
}

Messages pipeline_doubts(const std::vector<StageConfig>& stages) {
  Messages doubts;
  // A frozen model of the root reaches stages that have no use for it; it is enough that one has.
  const auto check = [&](const char* key, auto path_of, auto is_needed, const char* why) {
    for (const StageConfig& stage : stages) {
      const std::string& path = path_of(stage);
      const auto uses = [&](const StageConfig& other) { return path_of(other) == path && is_needed(other); };
      if (!path.empty() && std::none_of(stages.begin(), stages.end(), uses))
        doubts.push_back(format("{} = \"{}\" has no effect: {}.", key, path, why));
    }
  };
  check(
      "model.reference", [](const StageConfig& s) -> const std::string& { return s.model.reference; },
      [](const StageConfig& s) { return s.algo.needs_reference(); }, "algo.kl_coef is 0");
  check(
      "model.teacher", [](const StageConfig& s) -> const std::string& { return s.model.teacher; },
      [](const StageConfig& s) { return s.algo.needs_teacher(); }, "nothing in [algo] distils");
  check(
      "reward.model", [](const StageConfig& s) -> const std::string& { return s.reward.model; }, uses_reward_model,
      "reward.functions does not have \"model\"");
  for (const StageConfig& stage : stages) {
    const auto uses = [&](const StageConfig& other) {
      return other.critic == stage.critic && other.algo.needs_critic();
    };
    if (stage.critic != CriticSection() && std::none_of(stages.begin(), stages.end(), uses))
      doubts.push_back(format("[critic] has no effect: algo.adv_estimator = {} needs no critic.",
                              to_string(stage.algo.adv_estimator)));
  }
  return doubts;
}

}  // namespace temper
