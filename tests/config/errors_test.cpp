#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "config/load.h"
#include "config/table.h"
#include "tests/config/config_cases.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(ConfigErrors, UnknownKeysNameTheNearest) {
  EXPECT_THAT(error_of(kBase + "[algo]\nclip_ratio_hihg = 0.3\n"),
              HasSubstr("run.toml:9: unknown key algo.clip_ratio_hihg: the nearest is algo.clip_ratio_high"));
  EXPECT_THAT(error_of(kBase + "[rollouts]\nnum_generations = 3\n"),
              HasSubstr("unknown key rollouts.num_generations: here it is rollout.num_generations"));
  EXPECT_THAT(error_of(kBase + "[algoo]\n"), HasSubstr("unknown key algoo"));
  EXPECT_THAT(error_of_override("--train.max_stepz=3"),
              HasSubstr("--train.max_stepz=3: unknown key train.max_stepz: the nearest is train.max_steps"));
  EXPECT_THAT(error_of("steps = 3\n" + kBase), HasSubstr("run.toml:1: unknown key steps"));
}

TEST(ConfigErrors, SpellingsOfTrlAndVerlGetOurs) {
  const std::pair<const char*, const char*> kCases[] = {
      {"algo.epsilon_high", "algo.clip_ratio_high"},
      {"algo.epsilon", "algo.clip_ratio_low"},
      {"algo.beta", "algo.kl_coef"},
      {"algo.delta", "algo.clip_ratio_c"},
      {"algo.eps_clip", "algo.clip_ratio_low"},
      {"algo.cliprange_value", "algo.value_clip"},
      {"algo.loss_type", "algo.loss_agg_mode"},
      {"algo.num_iterations", "algo.num_epochs"},
      {"algo.kl_loss_coef", "algo.kl_coef"},
      {"algo.entropy_coeff", "algo.entropy_coef"},
      {"algo.tis_imp_ratio_cap", "algo.rollout_is_max"},
      {"algo.norm_adv_by_std_in_grpo", "algo.scale_rewards"},
      {"optim.lr", "optim.learning_rate"},
      {"train.learning_rate", "optim.learning_rate"},
      {"actor.grad_clip", "optim.max_grad_norm"},
      {"train.per_device_train_batch_size", "train.num_prompts_per_step"},
      {"rollout.n", "rollout.num_generations"},
      {"data.max_response_length", "rollout.max_completion_length"},
      {"trainer.total_training_steps", "train.max_steps"},
      {"trainer.save_freq", "checkpoint.local_every_steps"},
      {"reward.reward_funcs", "reward.functions"},
  };
  for (const auto& [theirs, ours] : kCases)
    EXPECT_THAT(error_of_override(format("--{}=1", theirs)),
                HasSubstr(format("unknown key {}: here it is {}", theirs, ours)));
}

TEST(ConfigErrors, AliasesLeadToKeysThatExist) {
  for (const KeySpec& key : key_table()) EXPECT_EQ(find_key(key.name), &key) << key.name;
  for (const char* foreign :
       {"beta", "lr", "n", "epsilon", "whiten_rewards", "target_kl", "overlong_buffer_cfg", "warmup_ratio",
        "teacher_model_name_or_path", "torch_dtype", "val_files", "report_to", "save_total_limit"}) {
    const std::string message = unknown_key_message(foreign);
    EXPECT_NE(find_key(message.substr(message.rfind(' ') + 1)), nullptr) << message;
  }
}

TEST(ConfigErrors, KeysOfLaterVersionsAreNotAcceptedSilently) {
  for (const char* key : {"async.recompute_kv_cache"}) {
    EXPECT_THAT(error_of_override(format("--{}=1", key)),
                HasSubstr(format("unknown key {}: this version does not have it. Remove it.", key)));
    EXPECT_EQ(find_key(key), nullptr);
  }
  EXPECT_THAT(error_of_override("--run.device=tpu"),
              HasSubstr("run.device = \"tpu\" is not known. Allowed: auto, cpu, cuda."));
}

TEST(ConfigErrors, ThePrometheusEndpointNeedsHostAndPort) {
  for (const char* wrong :
       {"9464", ":9464", "localhost", "127.0.0.1:", "127.0.0.1:http", "127.0.0.1:65536", "::1:9464"})
    EXPECT_THAT(error_of(kBase + format("[log]\nprometheus = \"{}\"\n", wrong)),
                HasSubstr(format("log.prometheus = \"{}\" is not HOST:PORT", wrong)));
  for (const char* local : {"127.0.0.1:9464", "localhost:9464", "[::1]:9464"})
    EXPECT_THAT(parse_config(kBase + format("[log]\nprometheus = \"{}\"\n", local)).warnings, IsEmpty()) << local;
  EXPECT_THAT(parse_config(kBase + "[log]\nprometheus = \"0.0.0.0:9464\"\n").warnings,
              testing::ElementsAre(AllOf(HasSubstr("log.prometheus = \"0.0.0.0:9464\""), HasSubstr("no password"))));
}

TEST(ConfigErrors, SettingsOfRolloutWorkersThatExcludeEachOther) {
  EXPECT_THAT(error_of_override("--async.max_staleness=1"),
              AllOf(HasSubstr("async.max_staleness = 1 needs rollout workers"), HasSubstr("Set rollout.workers to 1")));
  const std::string hub = kBase + "[rollout]\nworkers = 2\n";
  EXPECT_THAT(error_of(hub + "source = \"inline\"\n"),
              AllOf(HasSubstr("rollout.source = \"inline\" has no use for rollout.workers = 2"),
                    HasSubstr("Set rollout.source to \"auto\"")));
  EXPECT_THAT(error_of(hub + "[async]\nin_flight_updates = true\n"),
              AllOf(HasSubstr("async.in_flight_updates = true"), HasSubstr("Set async.max_staleness to 1 or more")));
  EXPECT_THAT(error_of(hub + "[async]\nmax_staleness = 1\n[algo]\npreset = \"remax\"\n"),
              AllOf(HasSubstr("algo.adv_estimator = remax"), HasSubstr("Set async.max_staleness to 0")));
  EXPECT_THAT(error_of(hub + "teacher_share = 0.5\n[algo]\npreset = \"distill\"\n", {"--model.teacher=t"}),
              AllOf(HasSubstr("rollout.teacher_share = 0.5 cannot go with rollout workers"),
                    HasSubstr("Set rollout.teacher_share to 0")));
  EXPECT_THAT(error_of(hub + "[async]\nlease_timeout_s = 0\n"),
              HasSubstr("async.lease_timeout_s = 0 is out of range. Allowed: greater than 0."));
  EXPECT_THAT(error_of(hub + "[async]\nmax_staleness = -1\n"),
              HasSubstr("async.max_staleness = -1 is out of range. Allowed: 0 or greater."));
}

TEST(ConfigErrors, IllTypedValuesSayWhatIsExpected) {
  EXPECT_THAT(error_of(kBase + "[train]\nmax_steps = \"ten\"\n"),
              HasSubstr("run.toml:9: train.max_steps = \"ten\" is a string. Expected: integer, 1 or greater."));
  EXPECT_THAT(error_of(kBase + "[train]\nmax_steps = 1.5\n"),
              HasSubstr("train.max_steps = 1.5 is a number. Expected: integer, 1 or greater."));
  EXPECT_THAT(error_of(kBase + "[optim]\nbetas = 0.9\n"),
              HasSubstr("optim.betas = 0.9 is a number. Expected: list of two numbers, in [0, 1)."));
  EXPECT_THAT(error_of(kBase + "[optim]\nbetas = [0.9]\n"),
              HasSubstr("optim.betas = [0.9] has 1 entries. Expected: list of two numbers."));
  EXPECT_THAT(error_of(kBase + "[run]\ndeterministic = 1\n"),
              HasSubstr("run.deterministic = 1 is an integer. Expected: true or false."));
  EXPECT_THAT(error_of(kBase + "[run]\nname = 3\n"), HasSubstr("run.name = 3 is an integer. Expected: string."));
  EXPECT_THAT(error_of(kBase + "[algo]\nkl_coef = {a = 1}\n"),
              HasSubstr("algo.kl_coef = {a = 1} is a table. Expected: number"));
  EXPECT_THAT(error_of(kBase + "[algo]\npreset = 3\n"),
              HasSubstr("algo.preset = 3 is an integer. Expected: string, one of grpo, dapo"));
  EXPECT_THAT(error_of(kBase + "[run]\nseed = 1979-05-27\n"),
              HasSubstr("run.seed = 1979-05-27 is a date or time. Expected: integer"));
  EXPECT_THAT(error_of(kBase + "[rollout]\nstop = [1]\n"),
              HasSubstr("rollout.stop = [1] is a list. Expected: list of strings."));
  EXPECT_THAT(
      error_of_override("--optim.learning_rate=fast"),
      HasSubstr(
          "--optim.learning_rate=fast: optim.learning_rate = \"fast\" is a string. Expected: number, 0 or greater."));
  EXPECT_THAT(error_of_override("--run.seed=99999999999999999999"), HasSubstr("run.seed"));
}

TEST(ConfigErrors, ReplicasNeedShardsAndADivisor) {
  EXPECT_THAT(
      error_of(kBase + "[train]\nreplicas = 2\n"),
      HasSubstr("train.replicas = 2 are copies of a sharded model, and train.shard = \"none\" shards nothing."));
  EXPECT_THAT(error_of(kBase + "[train]\nranks = 4\nreplicas = 3\nshard = \"full\"\n"),
              HasSubstr("train.ranks = 4 cannot be dealt out to train.replicas = 3 evenly."));
}

TEST(ConfigErrors, TensorParallelGroupsTheRanks) {
  EXPECT_THAT(error_of(kBase + "[train]\nranks = 3\ntensor_parallel = 2\n"),
              HasSubstr("train.ranks = 3 cannot be grouped by train.tensor_parallel = 2. Make train.ranks a multiple"));
  EXPECT_THAT(error_of(kBase + "[train]\nranks = 4\ntensor_parallel = 2\nreplicas = 4\nshard = \"full\"\n"),
              HasSubstr("train.ranks = 4 in groups of train.tensor_parallel = 2 cannot be dealt out to train.replicas ="
                        " 4 evenly."));
}

TEST(ConfigErrors, ValuesOutOfRangeSayWhatIsAllowed) {
  const std::pair<const char*, const char*> kCases[] = {
      {"train.max_steps=0", "train.max_steps = 0 is out of range. Allowed: 1 or greater."},
      {"algo.lam=1.5", "algo.lam = 1.5 is out of range. Allowed: in [0, 1]."},
      {"algo.clip_ratio_c=0.5", "algo.clip_ratio_c = 0.5 is out of range. Allowed: 0, or greater than 1."},
      {"algo.clip_ratio_c=1", "algo.clip_ratio_c = 1 is out of range. Allowed: 0, or greater than 1."},
      {"rollout.top_p=0", "rollout.top_p = 0 is out of range. Allowed: in (0, 1]."},
      {"optim.learning_rate=-1e-6", "optim.learning_rate = -1e-06 is out of range. Allowed: 0 or greater."},
      {"optim.betas=0.9,1", "1 is out of range. Allowed: in [0, 1)."},
      {"optim.eps=0", "optim.eps = 0 is out of range. Allowed: greater than 0."},
      {"run.seed=-1", "run.seed = -1 is out of range. Allowed: 0 or greater."},
      {"checkpoint.keep_local=1", "checkpoint.keep_local = 1 is out of range. Allowed: 2 or greater."},
      {"algo.entropy_coef=nan", "algo.entropy_coef = nan is not finite. Give a number."},
      {"optim.learning_rate=inf", "optim.learning_rate = inf is not finite. Give a number, 0 or greater."},
      {"algo.policy_loss=clipp", "algo.policy_loss = \"clipp\" is not known. Allowed: clip, gspo, cispo"},
      {"run.dtype=fp16", "run.dtype = \"fp16\" is not known. Allowed: auto, f32, bf16."},
      {"data.task=sums",
       "data.task = \"sums\" is not known. Allowed: arithmetic, add1, chain_sum, sort, copy, reverse, count."},
      {"reward.functions=exact,bleu",
       "\"bleu\" is not known. Allowed: exact, numeric, regex, format, length, task, model, command, code."},
      {"algo.rollout_rs={token_k9 = 1}", "algo.rollout_rs.token_k9 = 1 is no rejection test. Allowed: seq_max_k2"},
      {"algo.rollout_rs={token_k1 = [2, 1]}", "algo.rollout_rs.token_k1 = [2, 1] is not a bound. Allowed: [low, high]"},
      {"algo.rollout_rs={token_k1 = 0.5}", "algo.rollout_rs.token_k1 = 0.5 is not a bound. Allowed: [low, high]"},
      {"algo.rollout_rs={token_k3 = -1}",
       "algo.rollout_rs.token_k3 = -1 is not a bound. Allowed: a number, 0 or greater."},
  };
  for (const auto& [setting, message] : kCases)
    EXPECT_THAT(error_of_override(format("--{}", setting)), HasSubstr(message));
}

TEST(ConfigErrors, AllAreReportedTogetherWithTheirLines) {
  const std::string text = error_of(kBase + "[algo]\nbeta = 0.1\nlam = 2\n[train]\nmax_steps = 0\n", {"--run.sed=1"});
  EXPECT_THAT(text, HasSubstr("4 errors"));
  EXPECT_THAT(text, HasSubstr("run.toml:9: unknown key algo.beta: here it is algo.kl_coef"));
  EXPECT_THAT(text, HasSubstr("run.toml:10: algo.lam = 2"));
  EXPECT_THAT(text, HasSubstr("run.toml:12: train.max_steps = 0"));
  EXPECT_THAT(text, HasSubstr("--run.sed=1: unknown key run.sed: the nearest is run.seed"));
}

TEST(ConfigErrors, BrokenTomlNamesTheLine) {
  EXPECT_THAT(error_of("[run]\nname = x\n"),
              AllOf(HasSubstr("run.toml:2"), HasSubstr("not valid TOML"), HasSubstr("quotes")));
  EXPECT_THAT(error_of("[run\n"), HasSubstr("run.toml:1"));
  EXPECT_THAT(error_of("[run]\n[,a]\n"), AllOf(HasSubstr("run.toml: not valid TOML"), HasSubstr("Write [section]")));
  EXPECT_THAT(error_of("[run]\nseed = 1\nseed = 2\n"), HasSubstr("run.toml:3"));
}

TEST(ConfigErrors, MalformedOverridesSayHowToWriteThem) {
  EXPECT_THAT(error_of_override("--run.seed"), HasSubstr("--run.seed: no value. Write --run.seed=VALUE."));
  EXPECT_THAT(error_of_override("--stage.rl=3"),
              HasSubstr("--stage.rl=3: no key. Write --stage.NAME.section.key=VALUE."));
  EXPECT_THAT(error_of_override("--algo=3"), HasSubstr("--algo=3: algo is a table. Write --algo.KEY=VALUE."));
  EXPECT_THAT(error_of_override("--stage.rl.train.max_steps=3"),
              HasSubstr("there is no stage \"rl\". Stages here: grpo."));
}

TEST(ConfigErrors, StagesMustBeWellFormed) {
  EXPECT_THAT(error_of(kBase + "[stage]\nname = \"a\"\n"),
              HasSubstr("stage must be an array of tables. Write [[stage]]"));
  EXPECT_THAT(error_of(kBase + "[[stage]]\nname = \"a/b\"\n"),
              AllOf(HasSubstr("stage.name = \"a/b\""), HasSubstr("letters, digits, _ and -")));
  EXPECT_THAT(error_of(kBase + "[[stage]]\n[[stage]]\n"),
              HasSubstr("two stages are named \"grpo\". Give each [[stage]] its own name"));
  EXPECT_THAT(error_of(kBase + "[[stage]]\nrun.dir = \"x\"\n"),
              HasSubstr("run.toml:9: run.dir holds for the whole run, a stage cannot have its own. Set it in [run]."));
  EXPECT_THAT(error_of(kBase + "[[stage]]\nname = \"a\"\nalgo.beta = 1\n"),
              HasSubstr("unknown key algo.beta: here it is algo.kl_coef"));
}

TEST(ConfigErrors, ModelAndDataMustBeNamedOnce) {
  EXPECT_THAT(error_of("[data]\ntask = \"add1\"\n"),
              HasSubstr("model.path and model.init are both missing. Set model.path"));
  EXPECT_THAT(error_of(kBase + "[model.init]\nfamily = \"llama\"\n"),
              HasSubstr("model.path = \"models/a\" and model.init exclude each other. Remove one"));
  EXPECT_THAT(error_of("[model]\ninit = {hidden_size = 64}\n[data]\ntask = \"add1\"\n"),
              HasSubstr("model.init.family is missing. Allowed: llama, qwen2, qwen3."));
  EXPECT_THAT(error_of("[model]\npath = \"a\"\n"),
              HasSubstr("data.path and data.task are both missing. Set data.path"));
  EXPECT_THAT(error_of("[model]\npath = \"a\"\n[data]\npath = \"x\"\ntask = \"add1\"\n"),
              HasSubstr("data.path = \"x\" and data.task = \"add1\" exclude each other. Remove one"));
}

TEST(ConfigErrors, NewModelsMustFitTogether) {
  const auto error_of_init = [](const std::string& init) {
    return error_of("[model]\ninit = {family = \"llama\", " + init + "}\n[data]\ntask = \"add1\"\n");
  };
  EXPECT_THAT(error_of_init("num_heads = 4, num_kv_heads = 3"),
              HasSubstr("model.init.num_kv_heads = 3 does not divide model.init.num_heads = 4. Choose a divisor."));
  EXPECT_THAT(error_of_init("hidden_size = 100, num_heads = 3"),
              HasSubstr("model.init.hidden_size = 100 is no multiple of model.init.num_heads = 3"));
  EXPECT_THAT(error_of_init("head_dim = 7"), HasSubstr("model.init.head_dim = 7 is odd"));
  EXPECT_THAT(error_of_init("family = \"mamba\""), HasSubstr("run.toml:2"));
}

TEST(ConfigErrors, AGroupOfOneHasNothingToCompare) {
  const std::string text = error_of(kBase + "[rollout]\nnum_generations = 1\n");
  EXPECT_THAT(text, HasSubstr("rollout.num_generations = 1 leaves nothing to compare: algo.adv_estimator = grpo"));
  EXPECT_THAT(text, HasSubstr("Set rollout.num_generations to 2 or more"));
  const Config fine = parse_config(kBase, {"--rollout.num_generations=1", "--algo.preset=reinforce_plus_plus"});
  EXPECT_EQ(fine.rollout.num_generations, 1);
  const Config sft = parse_config(kBase, {"--rollout.num_generations=1", "--algo.preset=sft"});
  EXPECT_FALSE(sft.algo.compares_group());
}

TEST(ConfigErrors, TrainingOnGreedyRolloutsIsRefused) {
  EXPECT_THAT(error_of_override("--rollout.temperature=0"),
              AllOf(HasSubstr("rollout.temperature = 0 is greedy"), HasSubstr("Set it above 0"),
                    HasSubstr("eval.temperature")));
  EXPECT_EQ(parse_config(kBase, {"--rollout.temperature=0", "--algo.preset=sft"}).rollout.temperature, 0);
}

TEST(ConfigErrors, CacheBlocksAreMultiplesOf16) {
  EXPECT_THAT(error_of_override("--rollout.block_size=20"),
              HasSubstr("rollout.block_size = 20 is no multiple of 16. Round it to 32."));
}

TEST(ConfigErrors, AlgoCombinationsOfTheContract) {
  EXPECT_THAT(error_of(kBase, {"--algo.preset=gmpo", "--algo.rollout_is=token"}),
              AllOf(HasSubstr("algo.rollout_is = token"), HasSubstr("gmpo"),
                    HasSubstr("Set algo.rollout_is to sequence or none.")));
  EXPECT_THAT(error_of(kBase, {"--algo.preset=gdpo", "--algo.overlong_buffer.len=8"}),
              AllOf(HasSubstr("algo.overlong_buffer.len = 8"), HasSubstr("gdpo"),
                    HasSubstr("Set algo.overlong_buffer.len to 0")));
  EXPECT_THAT(
      error_of(kBase, {"--algo.preset=gdpo", "--algo.kl_coef=0.1", "--algo.kl_placement=reward"}),
      AllOf(HasSubstr("algo.kl_placement = reward"), HasSubstr("gdpo"), HasSubstr("Set algo.kl_placement to loss.")));
  EXPECT_THAT(error_of(kBase, {"--algo.preset=gkd", "--model.teacher=t", "--algo.distill_top_k=8"}),
              AllOf(HasSubstr("algo.distill_top_k = 8 needs algo.distill_loss = forward_kl (it is jsd)")));
  EXPECT_THAT(error_of(kBase, {"--algo.rollout_is=token", "--algo.rollout_is_min=3"}),
              AllOf(HasSubstr("algo.rollout_is_min = 3 exceeds algo.rollout_is_max = 2"), HasSubstr("Lower")));
  EXPECT_THAT(error_of(kBase, {"--algo.preset=distill"}),
              AllOf(HasSubstr("model.teacher is missing"), HasSubstr("Set it to")));
  EXPECT_THAT(error_of(kBase, {"--algo.preset=gkd", "--rollout.teacher_share=0.5"}),
              AllOf(HasSubstr("algo.distill_loss (and rollout.teacher_share) needs it"), HasSubstr("\"stage:NAME\"")));
  EXPECT_THAT(error_of_override("--rollout.teacher_share=0.5"),
              AllOf(HasSubstr("rollout.teacher_share = 0.5, but nothing in [algo] distils"),
                    HasSubstr("Set rollout.teacher_share to 0, or algo.preset to distill")));
  EXPECT_THAT(error_of(kBase, {"--algo.preset=ppo", "--critic.path=c", "--critic.shared_backbone=true"}),
              AllOf(HasSubstr("critic.path = \"c\" and critic.shared_backbone = true exclude each other"),
                    HasSubstr("Remove one")));
  EXPECT_THAT(
      error_of(kBase, {"--algo.preset=ppo", "--reward.weights=0"}),
      AllOf(HasSubstr("algo.adv_estimator = gae has no reward"), HasSubstr("reward.weights"), HasSubstr("Raise one")));
  EXPECT_NO_THROW(parse_config(kBase, {"--algo.preset=ppo", "--reward.weights=0", "--algo.kl_coef=0.1"}));
  EXPECT_THAT(
      error_of_override("--algo.overlong_buffer.len=300"),
      HasSubstr("algo.overlong_buffer.len = 300 exceeds rollout.max_completion_length = 256. Make it smaller."));
  EXPECT_THAT(error_of_override("--algo.num_minibatches=65"),
              HasSubstr("algo.num_minibatches = 65 is more than a step's 64 completions"));
}

TEST(ConfigErrors, ParseAlgoReportsAsTheWholeConfigurationDoes) {
  const auto error_of_algo = [](const std::vector<std::string>& settings) -> std::string {
    try {
      parse_algo(settings);
    } catch (const ConfigError& error) {
      return error.what();
    }
    return "none";
  };
  EXPECT_THAT(error_of_algo({"epsilon_high=0.3"}),
              HasSubstr("unknown key algo.epsilon_high: here it is algo.clip_ratio_high"));
  EXPECT_THAT(error_of_algo({"preset=gmpo", "rollout_is=token"}), HasSubstr("algo.rollout_is = token"));
  EXPECT_THAT(error_of_algo({"clip_ratio_c=1"}), HasSubstr("algo.clip_ratio_c = 1"));
}

TEST(ConfigErrors, RewardsMustBeComplete) {
  const std::string no_reward = "[model]\npath = \"a\"\n[data]\npath = \"x\"\n";
  EXPECT_THAT(error_of(no_reward),
              AllOf(HasSubstr("reward.functions is empty, but the stage trains on rewards (algo.adv_estimator = grpo)"),
                    HasSubstr("[\"exact\"]")));
  EXPECT_THAT(error_of(no_reward, {"--algo.preset=ppo"}), HasSubstr("(algo.adv_estimator = gae)"));
  EXPECT_NO_THROW(parse_config(no_reward, {"--algo.preset=distill", "--model.teacher=t"}));
  EXPECT_NO_THROW(parse_config(no_reward, {"--algo.preset=dpo", "--data.held_out_share=0.1"}));
  EXPECT_THAT(error_of(no_reward + "eval_path = \"y\"\n[algo]\npreset = \"sft\"\n"),
              HasSubstr("reward.functions is empty, but evaluation"));
  EXPECT_NO_THROW(parse_config(no_reward + "[algo]\npreset = \"sft\"\n"));
  EXPECT_THAT(error_of_override("--reward.weights=1,2"),
              HasSubstr("reward.weights has 2 entries and reward.functions has 1. Give one weight a function"));
  EXPECT_THAT(error_of_override("--reward.functions=exact,exact"), HasSubstr("names a function twice. Name it once"));
  EXPECT_THAT(error_of_override("--reward.functions=task"),
              AllOf(HasSubstr("\"task\", but data.task is not set"), HasSubstr("Use exact")));
  EXPECT_THAT(error_of_override("--reward.functions=regex"),
              HasSubstr("reward.regex.pattern is empty. Set the pattern"));
  EXPECT_THAT(error_of_override("--reward.functions=format"),
              HasSubstr("reward.format.pattern is empty. Set the pattern"));
  EXPECT_THAT(error_of_override("--reward.functions=length"), HasSubstr("reward.length.target is 0. Set the length"));
  EXPECT_THAT(
      error_of_override("--reward.functions=model"),
      AllOf(HasSubstr("\"model\", but reward.model is empty. Set it to the directory"), HasSubstr("\"stage:NAME\"")));
  EXPECT_THAT(error_of_override("--data.prompt_template=Question"),
              AllOf(HasSubstr("data.prompt_template = \"Question\""), HasSubstr("Write {prompt} in it.")));
}

TEST(ConfigErrors, AStageReferenceMustNameAnEarlierStageOfTheRightKind) {
  EXPECT_THAT(error_of(kBase, {"--model.path=stage:warm"}),
              HasSubstr("model.path = \"stage:warm\": no stage comes before this one. Give a directory."));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.reward.model=stage:judgge"}),
              AllOf(HasSubstr("stage ppo: reward.model = \"stage:judgge\": there is no such stage"),
                    HasSubstr("earlier stages (sft, judge), or give a directory")));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.judge.model.path=stage:ppo"}),
              AllOf(HasSubstr("stage judge: model.path = \"stage:ppo\": that stage does not come before this one"),
                    HasSubstr("earlier stages (sft)")));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.model.path=stage:ppo"}), HasSubstr("does not come before"));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.critic.path=stage:"}),
              HasSubstr("critic.path = \"stage:\": there is no such stage"));
  EXPECT_THAT(
      error_of(kRewardPipeline, {"--stage.ppo.reward.model=stage:sft"}),
      AllOf(HasSubstr("reward.model = \"stage:sft\": that stage makes no reward model (algo.policy_loss = sft)"),
            HasSubstr("Name one that does: judge.")));
  EXPECT_THAT(error_of(kPipeline, {"--stage.rl.reward.functions=model", "--stage.rl.reward.model=stage:warm"}),
              HasSubstr("Put a stage with algo.preset = reward_model before this one"));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.model.path=stage:judge"}),
              AllOf(HasSubstr("model.path = \"stage:judge\": that stage makes a reward model, which generates no text"),
                    HasSubstr("Name another stage (sft)")));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.algo.kl_coef=0.1", "--stage.ppo.model.reference=stage:judge"}),
              HasSubstr("model.reference = \"stage:judge\": that stage makes a reward model"));
  EXPECT_THAT(error_of(kRewardPipeline, {"--stage.ppo.algo.distill_coef=1", "--stage.ppo.model.teacher=stage:judge"}),
              HasSubstr("model.teacher = \"stage:judge\": that stage makes a reward model"));
  EXPECT_THAT(error_of(kPipeline, {"--stage.rl.model.path=stage:warm", "--stage.rl.model.init.family=llama"}),
              HasSubstr("exclude each other"));
}

TEST(ConfigErrors, StagesAreNamed) {
  EXPECT_THAT(error_of(kPipeline, {"--rollout.num_generations=1"}),
              HasSubstr("run.toml: stage rl: rollout.num_generations = 1"));
}

TEST(ConfigErrors, AMissingFileIsAnInputError) { EXPECT_THROW(load_config("no/such/file.toml"), IoError); }

TEST(ConfigWarnings, DoubtfulSettingsAreNamed) {
  const auto warnings_of = [](const std::vector<std::string>& overrides) {
    return join(parse_config(kBase, overrides).warnings);
  };
  EXPECT_THAT(warnings_of({"--eval.num_completions=4"}),
              AllOf(HasSubstr("eval.num_completions = 4"), HasSubstr("eval.temperature")));
  EXPECT_THAT(warnings_of({"--optim.warmup_steps=200"}),
              HasSubstr("optim.warmup_steps = 200 exceeds train.max_steps = 100"));
  EXPECT_THAT(warnings_of({"--model.reference=r"}), HasSubstr("model.reference = \"r\" has no effect"));
  EXPECT_THAT(warnings_of({"--model.teacher=t"}), HasSubstr("model.teacher = \"t\" has no effect"));
  EXPECT_THAT(parse_config(kPipeline, {"--model.reference=r"}).warnings, IsEmpty());  // the second stage uses it
  EXPECT_THAT(warnings_of({"--data.generated.seed=3"}),
              HasSubstr("[data.generated] has no effect: data.task is not set."));
  EXPECT_THAT(warnings_of({"--reward.length.target=3"}), HasSubstr("[reward.length] has no effect"));
  EXPECT_THAT(warnings_of({"--reward.model=r"}),
              HasSubstr("reward.model = \"r\" has no effect: reward.functions does not have \"model\"."));
  EXPECT_THAT(warnings_of({"--critic.learning_rate=1e-4"}),
              HasSubstr("[critic] has no effect: algo.adv_estimator = grpo needs no critic."));
  EXPECT_THAT(
      warnings_of({"--algo.preset=ppo", "--critic.learning_rate=1e-4", "--critic.shared_backbone=true"}),
      AllOf(HasSubstr("critic.learning_rate = 0.0001 has no effect"), HasSubstr("critic.shared_backbone = true")));
  EXPECT_THAT(warnings_of({"--algo.preset=distill", "--model.teacher=t", "--rollout.teacher_share=0.25"}),
              AllOf(HasSubstr("rollout.teacher_share = 0.25"), HasSubstr("off-policy"), HasSubstr("Set it to 0")));
  EXPECT_THAT(warnings_of({"--reward.functions=model", "--reward.model=r", "--data.held_out_share=0.1"}),
              AllOf(HasSubstr("reward.functions begins with \"model\""), HasSubstr("Put a rule first")));
  // A root section that one stage uses is no doubt, whatever the others do.
  EXPECT_THAT(parse_config(kPipeline, {"--stage.rl.algo.preset=ppo", "--critic.learning_rate=1e-4"}).warnings,
              IsEmpty());
}

}  // namespace
}  // namespace temper
