// Configurations that several tests start from, and the message of one that cannot work.
#pragma once
#include <gtest/gtest.h>

#include <string>
#include <vector>

#include "config/load.h"
#include "core/error.h"

namespace temper {

// A configuration that loads; tests append to it.
inline const std::string kBase = R"(
[model]
path = "models/a"
[data]
path = "train.jsonl"
[reward]
functions = ["exact"]
)";

// A pipeline as users write it.
inline const std::string kPipeline = R"(
[model]
init = {family = "llama", hidden_size = 64, num_layers = 2, num_heads = 2}
[data]
task = "arithmetic"
[algo]
preset = "grpo"
kl_coef = 0.05
[[stage]]
name = "warm"
algo.preset = "sft"
optim.learning_rate = 1e-3
[[stage]]
name = "rl"
[stage.algo]
clip_ratio_high = 0.3
[stage.train]
max_steps = 7
)";

// A reward model learned on the way to PPO.
inline const std::string kRewardPipeline = R"(
[model]
init = {family = "llama", hidden_size = 64, num_layers = 2, num_heads = 2}
[data]
task = "arithmetic"
[[stage]]
name = "sft"
algo.preset = "sft"
[[stage]]
name = "judge"
algo.preset = "reward_model"
[[stage]]
name = "ppo"
algo.preset = "ppo"
reward = {functions = ["task", "model"], weights = [0, 1], model = "stage:judge"}
critic = {path = "stage:judge", learning_rate = 1e-4}
)";

inline std::string error_of(const std::string& toml, const std::vector<std::string>& overrides = {}) {
  try {
    parse_config(toml, overrides, "run.toml");
  } catch (const ConfigError& error) {
    EXPECT_EQ(error.exit_code(), ExitCode::kConfig);
    return error.what();
  }
  ADD_FAILURE() << "no error for " << toml << testing::PrintToString(overrides);
  return "";
}

inline std::string error_of_override(const std::string& override_text) { return error_of(kBase, {override_text}); }

}  // namespace temper
