#include "config/load.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "config/stage_models.h"
#include "config/table.h"
#include "tests/config/config_cases.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::Each;
using testing::ElementsAre;
using testing::HasSubstr;
using testing::IsEmpty;

TEST(Config, EveryKeyHasItsDefault) {
  const Config config = parse_config(kBase, {}, "runs/first.toml");
  ASSERT_EQ(config.stages.size(), 1u);
  const StageConfig& stage = config.stages[0];
  EXPECT_EQ(stage.name, "grpo");
  EXPECT_TRUE(stage.own_model);
  EXPECT_EQ(stage.run.name, "first");
  EXPECT_EQ(config.run_dir(), "runs/first");
  EXPECT_EQ(stage.rollout.num_generations, 8);
  EXPECT_EQ(stage.rollout.max_completion_length, 256);
  EXPECT_EQ(stage.rollout.temperature, 1.0);
  EXPECT_EQ(stage.optim.learning_rate, 1e-6);
  EXPECT_EQ(stage.optim.max_grad_norm, 1.0);
  EXPECT_EQ(stage.optim.betas, (std::array<double, 2>{0.9, 0.999}));
  EXPECT_EQ(stage.train.num_prompts_per_step, 8);
  EXPECT_EQ(stage.train.max_tokens_per_micro_batch, 4096);
  EXPECT_EQ(stage.algo.clip_ratio_c, 3.0);
  EXPECT_EQ(stage.algo.advantage_eps, 1e-4);
  EXPECT_EQ(stage.algo.kl_coef, 0.0);
  EXPECT_EQ(stage.algo.whiten_advantages, false);
  EXPECT_EQ(stage.rollout.dtype, RolloutDtype::kAuto);
  EXPECT_THAT(config.warnings, IsEmpty());
}

TEST(Config, RolloutsOfAnotherTypeAreCorrectedByTheLoss) {
  const auto rollout_is = [](const std::vector<std::string>& overrides) {
    return parse_config(kBase, overrides).stages.at(0).algo.rollout_is;
  };
  EXPECT_EQ(rollout_is({}), RolloutIs::kNone);
  EXPECT_EQ(rollout_is({"--rollout.dtype=int8"}), RolloutIs::kToken);
  EXPECT_EQ(rollout_is({"--rollout.dtype=bf16", "--run.dtype=f32"}), RolloutIs::kToken);
  EXPECT_EQ(rollout_is({"--rollout.dtype=f32", "--run.dtype=f32"}), RolloutIs::kNone);
  EXPECT_EQ(rollout_is({"--rollout.dtype=int8", "--algo.preset=gmpo"}), RolloutIs::kSequence);
  EXPECT_EQ(rollout_is({"--rollout.dtype=int8", "--algo.rollout_is=sequence"}), RolloutIs::kSequence);
  const Config config = parse_config(kBase, {"--rollout.dtype=int8", "--algo.rollout_is=none"});
  EXPECT_EQ(config.stages.at(0).algo.rollout_is, RolloutIs::kNone);
  EXPECT_THAT(config.warnings, ElementsAre(HasSubstr("not corrected")));
}

TEST(Config, RolloutsOfWorkersThatRunAheadAreCorrectedByTheLoss) {
  const std::vector<std::string> ahead = {"--rollout.workers=2", "--async.max_staleness=1"};
  const auto with = [&ahead](const char* more) {
    std::vector<std::string> all = ahead;
    all.emplace_back(more);
    return parse_config(kBase, all);
  };
  EXPECT_EQ(parse_config(kBase, ahead).stages.at(0).algo.rollout_is, RolloutIs::kToken);
  EXPECT_EQ(parse_config(kBase, {"--rollout.workers=2"}).stages.at(0).algo.rollout_is, RolloutIs::kNone);
  EXPECT_EQ(with("--algo.rollout_is=sequence").stages.at(0).algo.rollout_is, RolloutIs::kSequence);
  const Config uncorrected = with("--algo.rollout_is=none");
  EXPECT_EQ(uncorrected.stages.at(0).algo.rollout_is, RolloutIs::kNone);
  EXPECT_THAT(uncorrected.warnings,
              ElementsAre(AllOf(HasSubstr("async.max_staleness = 1"), HasSubstr("not corrected"))));
}

TEST(Config, WorkersServeTheStagesThatTrainOnRollouts) {
  const Config config = parse_config(kPipeline, {"--rollout.workers=2"});
  EXPECT_FALSE(config.stages.at(0).uses_hub());
  EXPECT_TRUE(config.stages.at(1).uses_hub());
  EXPECT_FALSE(parse_config(kPipeline).stages.at(1).uses_hub());
  EXPECT_TRUE(parse_config(kPipeline, {"--rollout.source=hub"}).stages.at(1).uses_hub());
  EXPECT_FALSE(parse_config(kPipeline, {"--rollout.source=inline"}).stages.at(1).uses_hub());
}

TEST(Config, FileValuesReachTheirFields) {
  const Config config = parse_config(kBase + R"(
[rollout]
temperature = 1
stop = ["\n\n", "END"]
dtype = "f32"
[optim]
betas = [0.9, 0.95]
lr_scheduler_type = "cosine"
[algo]
preset = "dapo"
overlong_buffer = {len = 16, penalty_factor = 0.5}
kl_ctrl.type = "adaptive"
rollout_rs = {token_k1 = [0.5, 2], seq_mean_k3 = 0.01, seq_sum_k1 = 4}
)");
  const StageConfig& stage = config.stages.at(0);
  EXPECT_EQ(stage.name, "dapo");
  EXPECT_EQ(stage.rollout.temperature, 1.0);
  EXPECT_THAT(stage.rollout.stop, ElementsAre("\n\n", "END"));
  EXPECT_EQ(stage.rollout.dtype, RolloutDtype::kF32);
  EXPECT_EQ(stage.optim.betas[1], 0.95);
  EXPECT_EQ(stage.optim.lr_scheduler_type, LrScheduler::kCosine);
  EXPECT_EQ(stage.algo.overlong_buffer.len, 16);
  EXPECT_EQ(stage.algo.overlong_buffer.penalty_factor, 0.5);
  EXPECT_EQ(stage.algo.kl_ctrl.type, KlCtrlType::kAdaptive);
  EXPECT_EQ(stage.algo.rollout_rs.at("token_k1"), (RejectionBound{0.5, 2}));
  EXPECT_EQ(stage.algo.rollout_rs.at("seq_mean_k3"), (RejectionBound{0, 0.01}));
  EXPECT_EQ(stage.algo.rollout_rs.at("seq_sum_k1"), (RejectionBound{0.25, 4}));
}

TEST(Config, OverridesWinOverTheFileAndNeedNoQuotes) {
  const Config config = parse_config(
      kBase, {"--run.name=2024", "--run.seed=7", "--reward.functions=exact,length", "--reward.length.target=20",
              "--reward.weights=1,0.5", "--optim.betas=[0.8, 0.9]", "--algo.clip_ratio_low=.3", "data.shuffle=false",
              "--algo.overlong_buffer={len = 9}", "--data.prompt_template=\"{prompt}\\n\"", "--model.path=models/b"});
  EXPECT_EQ(config.run.name, "2024");
  EXPECT_EQ(config.run.seed, 7);
  EXPECT_THAT(config.reward.functions, ElementsAre("exact", "length"));
  EXPECT_THAT(config.reward.weights, ElementsAre(1, 0.5));
  EXPECT_EQ(config.optim.betas[0], 0.8);
  EXPECT_EQ(config.algo.clip_ratio_low, 0.3);
  EXPECT_FALSE(config.data.shuffle);
  EXPECT_EQ(config.algo.overlong_buffer.len, 9);
  EXPECT_EQ(config.data.prompt_template, "{prompt}\n");
  EXPECT_EQ(config.stages[0].model.path, "models/b");
}

TEST(ConfigStages, InheritRootSectionsAndTheirPresetResetsAlgo) {
  const Config config = parse_config(kPipeline);
  ASSERT_EQ(config.stages.size(), 2u);
  const StageConfig& warm = config.stages[0];
  const StageConfig& rl = config.stages[1];
  EXPECT_EQ(warm.name, "warm");
  EXPECT_EQ(warm.algo.policy_loss, PolicyLoss::kSft);
  EXPECT_EQ(warm.algo.loss_agg_mode, LossAggMode::kTokenMean);
  EXPECT_EQ(warm.algo.kl_coef, 0.0);  // the root's does not reach a stage with its own preset
  EXPECT_EQ(warm.optim.learning_rate, 1e-3);
  EXPECT_TRUE(warm.own_model);
  EXPECT_EQ(rl.algo.kl_coef, 0.05);
  EXPECT_EQ(rl.algo.clip_ratio_high, 0.3);
  EXPECT_EQ(rl.algo.clip_ratio_low, 0.2);
  EXPECT_EQ(rl.optim.learning_rate, 1e-6);
  EXPECT_EQ(rl.train.max_steps, 7);
  EXPECT_FALSE(rl.own_model);  // goes on with warm's model
  EXPECT_THAT(rl.reward.functions, ElementsAre("task"));
  EXPECT_THAT(config.warnings, IsEmpty());
}

TEST(ConfigStages, AStageMayBringItsOwnModelAndData) {
  const Config config = parse_config(kPipeline + R"(
[[stage]]
name = "other"
model.path = "models/b"
data.path = "b.jsonl"
reward.functions = ["numeric"]
)");
  const StageConfig& other = config.stages.at(2);
  EXPECT_TRUE(other.own_model);
  EXPECT_EQ(other.model.path, "models/b");
  EXPECT_EQ(other.model.init, ModelInit());
  EXPECT_EQ(other.data.task, "");
  EXPECT_EQ(other.algo.kl_coef, 0.05);
}

TEST(ConfigStages, OverridesReachEveryStage) {
  const Config config = parse_config(kPipeline, {"--train.max_steps=3", "--algo.num_minibatches=2"});
  for (const StageConfig& stage : config.stages) {
    EXPECT_EQ(stage.train.max_steps, 3);
    EXPECT_EQ(stage.algo.num_minibatches, 2);
  }
}

TEST(ConfigStages, OverridesOfAlgoAreIgnoredWithAWarningWhereTheLossDoesNotUseThem) {
  const Config config = parse_config(kPipeline, {"--algo.kl_coef=0.2", "--algo.clip_ratio_low=0.1"});
  EXPECT_EQ(config.stages[0].algo.kl_coef, 0.0);
  EXPECT_FALSE(config.stages[0].algo.needs_reference());
  EXPECT_EQ(config.stages[0].algo.clip_ratio_low, 0.2);
  EXPECT_EQ(config.stages[1].algo.kl_coef, 0.2);
  EXPECT_TRUE(config.stages[1].algo.needs_reference());
  EXPECT_EQ(config.stages[1].algo.clip_ratio_low, 0.1);
  ASSERT_EQ(config.warnings.size(), 2u);
  EXPECT_THAT(config.warnings, Each(AllOf(HasSubstr("stage warm"), HasSubstr("ignored"), HasSubstr("sft"))));
  EXPECT_THAT(config.warnings[0], HasSubstr("--algo.kl_coef=0.2"));
}

TEST(ConfigStages, APresetOverrideLeavesStagesOfAnotherKindAlone) {
  const Config config = parse_config(kPipeline, {"--algo.preset=dapo"});
  EXPECT_EQ(config.stages[0].algo.preset, Preset::kSft);
  EXPECT_EQ(config.stages[1].algo.preset, Preset::kDapo);
  EXPECT_EQ(config.stages[1].algo.kl_coef, 0.05);
  EXPECT_EQ(config.stages[1].algo.clip_ratio_high, 0.3);
  EXPECT_TRUE(config.stages[1].algo.filter_groups);
  ASSERT_EQ(config.warnings.size(), 1u);
  EXPECT_THAT(config.warnings[0], AllOf(HasSubstr("--algo.preset=dapo"), HasSubstr("--stage.warm.algo.preset=dapo")));
}

TEST(ConfigStages, AnOverrideMayNameOneStage) {
  const Config config = parse_config(kPipeline, {"--stage.rl.optim.learning_rate=2e-5", "--stage.rl.algo.preset=rloo"});
  EXPECT_EQ(config.stages[0].optim.learning_rate, 1e-3);
  EXPECT_EQ(config.stages[1].optim.learning_rate, 2e-5);
  EXPECT_EQ(config.stages[1].algo.adv_estimator, AdvEstimator::kRloo);
  EXPECT_EQ(config.stages[1].algo.kl_coef, 0.0);          // the stage's own preset now
  EXPECT_EQ(config.stages[1].algo.clip_ratio_high, 0.3);  // and its own keys
}

TEST(ConfigStages, AStageOverrideNamesTheSingleStageByItsPreset) {
  const Config config = parse_config(kBase, {"--stage.grpo.train.max_steps=5"});
  EXPECT_EQ(config.stages[0].train.max_steps, 5);
  EXPECT_EQ(config.train.max_steps, 5);
}

TEST(ConfigStages, KeysWithoutEffectAreWarnedOf) {
  const Config config = parse_config(kBase + "[algo]\nsapo_tau_pos = 2\ngamma = 1.0\n");
  ASSERT_EQ(config.warnings.size(), 1u);
  EXPECT_THAT(config.warnings[0], AllOf(HasSubstr("algo.sapo_tau_pos = 2"), HasSubstr("no effect"), HasSubstr("clip")));
}

TEST(ConfigModel, TheLayerThatNamesTheModelReplacesTheOneBelow) {
  const Config config = parse_config(kPipeline, {"--model.path=models/a"});
  EXPECT_EQ(config.stages[0].model.path, "models/a");
  EXPECT_EQ(config.stages[0].model.init, ModelInit());
  EXPECT_FALSE(config.stages[1].own_model);  // an override for the whole run does not cut the pipeline
  const Config own = parse_config(kPipeline, {"--stage.rl.model.path=models/b", "--stage.rl.data.path=x.jsonl",
                                              "--stage.rl.reward.functions=exact"});
  EXPECT_TRUE(own.stages[1].own_model);
  EXPECT_EQ(own.stages[1].model.path, "models/b");
  EXPECT_EQ(own.stages[1].model.init.family, "");
  EXPECT_EQ(own.stages[1].data.task, "");
  EXPECT_EQ(own.stages[0].data.task, "arithmetic");
}

TEST(StageModels, AReferenceIsAPrefixAndAName) {
  EXPECT_EQ(stage_reference("stage:sft"), "sft");
  EXPECT_EQ(stage_reference("stage:"), "");
  EXPECT_EQ(stage_reference("models/stage:sft"), std::nullopt);
  EXPECT_EQ(stage_reference(""), std::nullopt);
}

TEST(StageModels, AStageStartsFromTheLatestPolicyBeforeIt) {
  const Config config = parse_config(kRewardPipeline);
  EXPECT_THAT(config.warnings, IsEmpty());
  EXPECT_EQ(start_stage(config, 0), -1);
  EXPECT_EQ(start_stage(config, 1), 0);
  EXPECT_EQ(start_stage(config, 2), 0);  // a reward model is no policy to go on with
  EXPECT_FALSE(config.stages[2].own_model);
  EXPECT_EQ(config.stages[2].reward.model, "stage:judge");
  EXPECT_EQ(config.stages[2].critic_learning_rate(), 1e-4);
  EXPECT_EQ(config.stages[0].critic_learning_rate(), 1e-6);  // optim.learning_rate

  std::vector<std::string> keys;
  for (const ModelUse& use : used_models(config.stages[2])) keys.push_back(use.key);
  EXPECT_THAT(keys, ElementsAre("critic.path", "reward.model"));
  EXPECT_THAT(used_models(config.stages[0]), IsEmpty());
}

TEST(StageModels, AStageMayNameWhereItStarts) {
  const Config config = parse_config(kPipeline + R"(
[[stage]]
name = "again"
model.path = "stage:warm"
model.reference = "stage:rl"
[[stage]]
name = "judge"
algo.preset = "reward_model"
[[stage]]
name = "judge2"
algo.preset = "reward_model"
model.path = "stage:judge"
)");
  EXPECT_EQ(start_stage(config, 2), 0);
  EXPECT_FALSE(config.stages[2].own_model);
  EXPECT_EQ(config.stages[2].model.reference, "stage:rl");
  EXPECT_EQ(start_stage(config, 3), 2);
  EXPECT_EQ(start_stage(config, 4), 3);  // a reward model may start from one
  EXPECT_THAT(config.warnings, IsEmpty());
}

TEST(StageModels, AnotherModelForTheWholeRunDoesNotCutThePipeline) {
  const std::string toml = kPipeline + "[[stage]]\nname = \"again\"\nmodel.path = \"stage:warm\"\n";
  for (const char* model : {"--model.init.num_layers=4", "--model.init.family=qwen2", "--model.path=models/a"}) {
    const Config config = parse_config(toml, {model});
    EXPECT_EQ(start_stage(config, 2), 0) << model;
    EXPECT_EQ(config.stages[2].model.path, "stage:warm");
    EXPECT_EQ(config.stages[2].model.init, ModelInit());
  }
}

TEST(StageModels, AfterRewardModelsAloneAPolicyStartsFromTheRoot) {
  const Config config = parse_config(R"(
[model]
path = "models/a"
[data]
task = "arithmetic"
[[stage]]
name = "judge"
algo.preset = "reward_model"
model.path = "models/b"
[[stage]]
name = "rl"
reward = {functions = ["task", "model"], model = "stage:judge"}
)");
  EXPECT_TRUE(config.stages[1].own_model);
  EXPECT_EQ(config.stages[1].model.path, "models/a");
  EXPECT_EQ(start_stage(config, 1), -1);
}

TEST(StageModels, WhatAStageDoesNotUseIsNotAsked) {
  // The root's teacher reaches the stage that makes it, which has none.
  const Config config = parse_config(kPipeline, {"--model.teacher=stage:warm", "--stage.rl.algo.preset=distill"});
  EXPECT_THAT(used_models(config.stages[0]), IsEmpty());
  ASSERT_EQ(used_models(config.stages[1]).size(), 1u);
  EXPECT_EQ(used_models(config.stages[1])[0].role, ModelRole::kTeacher);
  EXPECT_EQ(used_models(config.stages[1])[0].path, "stage:warm");
}

TEST(StageModels, ARewardModelAnswersNothing) {
  const Config config = parse_config(kRewardPipeline);
  EXPECT_TRUE(evaluates(config.stages[0]));
  EXPECT_FALSE(evaluates(config.stages[1]));
  EXPECT_FALSE(uses_reward_model(config.stages[0]));
  EXPECT_TRUE(uses_reward_model(config.stages[2]));
  EXPECT_FALSE(evaluates(parse_config(kRewardPipeline, {"--eval.num_prompts=0"}).stages[0]));
}

TEST(ShippedConfigs, LoadWithoutWarnings) {
  const std::filesystem::path root = std::filesystem::path(TEMPER_TEST_DATA) / ".." / ".." / "..";
  int count = 0;
  for (const auto& entry : std::filesystem::directory_iterator(root.lexically_normal() / "configs")) {
    if (entry.path().extension() != ".toml") continue;
    ++count;
    EXPECT_THAT(load_config(entry.path().string()).warnings, IsEmpty()) << entry.path();
  }
  EXPECT_GT(count, 0);
}

// --- the presets, as docs/algorithms.md lists them

TEST(Presets, SetWhatTheContractSays) {
  const AlgoSection grpo = algo_preset(Preset::kGrpo);
  EXPECT_EQ(grpo, AlgoSection());
  const AlgoSection dapo = algo_preset(Preset::kDapo);
  EXPECT_EQ(dapo.clip_ratio_high, 0.28);
  EXPECT_EQ(dapo.loss_agg_mode, LossAggMode::kTokenMean);
  EXPECT_TRUE(dapo.filter_groups);
  const AlgoSection dr_grpo = algo_preset(Preset::kDrGrpo);
  EXPECT_EQ(dr_grpo.scale_rewards, ScaleRewards::kNone);
  EXPECT_EQ(dr_grpo.loss_agg_mode, LossAggMode::kSeqMeanTokenSumNorm);
  const AlgoSection gspo = algo_preset(Preset::kGspo);
  EXPECT_EQ(gspo.policy_loss, PolicyLoss::kGspo);
  EXPECT_EQ(gspo.clip_ratio_low, 3e-4);
  EXPECT_EQ(gspo.clip_ratio_high, 4e-4);
  EXPECT_EQ(gspo.loss_agg_mode, LossAggMode::kSeqMeanTokenMean);
  const AlgoSection cispo = algo_preset(Preset::kCispo);
  EXPECT_EQ(cispo.policy_loss, PolicyLoss::kCispo);
  EXPECT_EQ(cispo.clip_ratio_low, 10);
  EXPECT_EQ(cispo.clip_ratio_high, 0.2);
  EXPECT_EQ(cispo.loss_agg_mode, LossAggMode::kTokenMean);
  EXPECT_EQ(algo_preset(Preset::kSapo).policy_loss, PolicyLoss::kSapo);
  EXPECT_EQ(algo_preset(Preset::kGmpo).clip_ratio_high, 0.4);
  for (const auto& [preset, estimator] :
       {std::pair(Preset::kRloo, AdvEstimator::kRloo), std::pair(Preset::kRemax, AdvEstimator::kRemax),
        std::pair(Preset::kReinforcePlusPlus, AdvEstimator::kReinforcePlusPlus),
        std::pair(Preset::kPpo, AdvEstimator::kGae)}) {
    const AlgoSection algo = algo_preset(preset);
    EXPECT_EQ(algo.adv_estimator, estimator);
    EXPECT_EQ(algo.loss_agg_mode, LossAggMode::kTokenMean);
    EXPECT_EQ(algo.kl_placement, KlPlacement::kReward);
    EXPECT_EQ(algo.kl_estimator, KlEstimatorKind::kK1);
    EXPECT_EQ(algo.policy_loss, PolicyLoss::kClip);
  }
  const AlgoSection baseline = algo_preset(Preset::kReinforcePlusPlusBaseline);
  EXPECT_EQ(baseline.kl_estimator, KlEstimatorKind::kK2);
  EXPECT_EQ(baseline.kl_placement, KlPlacement::kLoss);
  EXPECT_TRUE(baseline.whitens());
  EXPECT_EQ(algo_preset(Preset::kGpg).policy_loss, PolicyLoss::kReinforce);
  EXPECT_EQ(algo_preset(Preset::kGpg).adv_estimator, AdvEstimator::kGpg);
  EXPECT_EQ(algo_preset(Preset::kDistill).distill_coef, 1);
  EXPECT_EQ(algo_preset(Preset::kGkd).distill_loss, DistillLoss::kJsd);
  EXPECT_EQ(algo_preset(Preset::kGkd).policy_loss, PolicyLoss::kNone);
  EXPECT_EQ(algo_preset(Preset::kSft).loss_agg_mode, LossAggMode::kTokenMean);
  EXPECT_EQ(algo_preset(Preset::kDpo).policy_loss, PolicyLoss::kDpo);
  EXPECT_EQ(algo_preset(Preset::kDpo).loss_agg_mode, LossAggMode::kSeqMeanTokenMean);
  EXPECT_EQ(algo_preset(Preset::kRewardModel).policy_loss, PolicyLoss::kRewardModel);
  EXPECT_EQ(algo_preset(Preset::kRewardModel).adv_estimator, AdvEstimator::kNone);
}

TEST(Presets, AGivenKeyWinsWhateverItsPlaceInTheFile) {
  const AlgoSection algo = parse_algo({"clip_ratio_high=0.5", "preset=dapo"});
  EXPECT_EQ(algo.clip_ratio_high, 0.5);
  EXPECT_TRUE(algo.filter_groups);
  EXPECT_EQ(parse_algo({"adv_estimator=gae"}).whiten_advantages, true);
  EXPECT_EQ(parse_algo({"adv_estimator=gae", "whiten_advantages=false"}).whiten_advantages, false);
}

}  // namespace
}  // namespace temper
