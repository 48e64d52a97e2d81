#include "rollout/reward_model.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "model/hf_directory.h"
#include "rollout/reward_pool.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

using testing::HasSubstr;

class RewardModel : public testing::Test {
 protected:
  RewardModel()
      : folder_(testing::TempDir() + "/reward_model_" + testing::UnitTest::GetInstance()->current_test_info()->name()) {
    std::filesystem::remove_all(folder_);
    make_directories(folder_);
    TinyModel tiny;
    const LoadedModel model = with_heads({tiny.config, tiny.parameters, at::kFloat}, false, true);
    model.parameters["score.weight"].copy_(at::arange(32).to(at::kFloat).sin().view({1, 32}));
    write_model_files(folder_, model.config, model.parameters, at::kFloat);
  }

  RolloutGroup group(std::vector<std::vector<int32_t>> completions) const {
    RolloutGroup made;
    made.prompt.token_ids = random_prompt(7, 12);
    for (auto& ids : completions) made.completions.emplace_back().token_ids = std::move(ids);
    return made;
  }
  std::vector<RewardOutcome> score(RolloutGroup given) {
    ModelReward reward(folder_, at::kFloat);
    return reward.score(std::make_shared<const RolloutGroup>(std::move(given)), {}).get();
  }

  const std::string folder_;
};

TEST_F(RewardModel, ScoresAreTheHeadsNumberAtTheLastToken) {
  const std::vector<std::vector<int32_t>> completions = {random_prompt(1, 5), random_prompt(2, 1), random_prompt(3, 9)};
  const auto together = score(group(completions));
  const LoadedModel loaded = load_model(folder_);
  Transformer model(loaded.config, at::kFloat, false);
  model.load(loaded.parameters, 0);
  const at::NoGradGuard no_grad;
  for (size_t i = 0; i < completions.size(); ++i) {
    std::vector<int64_t> ids;
    for (const int32_t id : random_prompt(7, 12)) ids.push_back(id);
    for (const int32_t id : completions[i]) ids.push_back(id);
    const auto length = static_cast<int64_t>(ids.size());
    const at::Tensor hidden = model.hidden_states(
        at::tensor(ids, at::kLong), at::arange(length, at::kLong), [&](int64_t, const at::Tensor& qkv) {
          return packed_attention_qkv(qkv, 4, 2, {{.begin = 0, .end = length}}, model.attention_scale());
        });
    EXPECT_NEAR(together[i].value, model.values(hidden)[length - 1].item<double>(), 1e-5);
    EXPECT_EQ(score(group({completions[i]})).front().value, together[i].value);  // whatever shares the pass
  }
}

TEST_F(RewardModel, WhatCannotBeScoredFailsAloneAndIsNeverZero) {
  const auto outcomes = score(group({random_prompt(1, 5), {}, {1, 9000}, random_prompt(4, 200)}));
  EXPECT_TRUE(outcomes[0].error.empty());
  EXPECT_THAT(outcomes[1].error, HasSubstr("no token"));
  EXPECT_THAT(outcomes[2].error, HasSubstr("outside the vocabulary"));
  EXPECT_THAT(outcomes[3].error, HasSubstr("212 tokens exceed the context"));
  for (size_t i = 1; i < outcomes.size(); ++i) EXPECT_TRUE(std::isnan(outcomes[i].value));
}

TEST_F(RewardModel, ALanguageModelIsRefused) {
  TinyModel tiny;
  write_model_files(folder_, tiny.config, tiny.parameters, at::kFloat);
  try {
    ModelReward(folder_, at::kFloat);
    FAIL() << "a language model was taken";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), testing::AllOf(HasSubstr("reward.model"), HasSubstr("LlamaForCausalLM")));
  }
}

}  // namespace
}  // namespace temper
