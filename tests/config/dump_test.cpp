#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <filesystem>
#include <fstream>
#include <set>

#include "config/load.h"
#include "config/table.h"
#include "tests/config/config_cases.h"

namespace temper {
namespace {

using testing::HasSubstr;
using testing::IsEmpty;

void expect_round_trip(const std::string& toml, const std::vector<std::string>& overrides) {
  const Config config = parse_config(toml, overrides, "dir/exp.toml");
  const std::string dumped = dump_toml(config);
  const Config again = parse_config(dumped, {}, "runs/exp/config.toml");
  EXPECT_TRUE(static_cast<const Sections&>(again) == static_cast<const Sections&>(config)) << dumped;
  EXPECT_TRUE(again.stages == config.stages) << dumped;
  EXPECT_EQ(dump_toml(again), dumped);
  EXPECT_THAT(again.warnings, IsEmpty());
}

TEST(ConfigDump, LoadsToTheSameConfiguration) {
  expect_round_trip(kBase, {});
  expect_round_trip(kBase, {"--stage.grpo.algo.preset=dapo", "--algo.kl_coef=0.1"});
  expect_round_trip(
      kBase, {"--algo.preset=ppo", "--algo.rollout_rs={token_k1 = 3, seq_max_k2 = 0.125}", "--rollout.stop=\\n,\"a"});
  expect_round_trip(kPipeline, {});
  expect_round_trip(kBase, {"--rollout.dtype=int8"});
  expect_round_trip(kBase, {"--rollout.dtype=int8", "--algo.rollout_is=sequence"});
  expect_round_trip(
      kPipeline, {"--run.dtype=f32", "--stage.rl.rollout.dtype=bf16", "--optim.learning_rate=1.2345678901234567e-5"});
  expect_round_trip(kPipeline, {"--stage.rl.model.path=models/b", "--stage.rl.data.path=x.jsonl",
                                "--stage.rl.reward.functions=exact", "--stage.warm.model.init.hidden_size=128"});
  expect_round_trip(kPipeline, {"--model.path=m", "--stage.rl.model.path=m"});
  expect_round_trip(kPipeline, {"--stage.rl.model.path=stage:warm", "--stage.rl.model.reference=stage:warm"});
  expect_round_trip(kRewardPipeline, {});
  expect_round_trip(kRewardPipeline, {"--stage.sft.algo.preset=reward_model"});  // then ppo has the root's model
}

TEST(ConfigDump, NamesEveryKeyThatHolds) {
  const std::string dumped = dump_toml(parse_config(kPipeline));
  for (const KeySpec& key : key_table())
    EXPECT_THAT(dumped, HasSubstr("\n" + key.name.substr(key.name.rfind('.') + 1) + " = ")) << key.name;
  EXPECT_THAT(dumped, HasSubstr("[[stage]]\nname = \"warm\""));
  EXPECT_THAT(dumped, HasSubstr("dtype = \"auto\""));
}

TEST(ConfigHelp, NamesEveryKeyWithDefaultAndUnit) {
  const std::string help = config_help();
  for (const KeySpec& key : key_table()) {
    EXPECT_THAT(help, HasSubstr("--" + key.name + "=<")) << key.name;
    EXPECT_FALSE(key.help.empty()) << key.name;
    EXPECT_EQ(key.help.back(), '.') << key.name;
  }
  EXPECT_THAT(help, HasSubstr("--rollout.max_completion_length=<integer, tokens>  (default: 256)"));
  EXPECT_THAT(help, HasSubstr("Allowed: one of grpo, rloo"));
}

TEST(ConfigMarkdown, DocsAreWhatTheTableGives) {
  const std::filesystem::path root = std::filesystem::path(TEMPER_TEST_DATA) / ".." / ".." / "..";
  std::ifstream file(root.lexically_normal() / "docs" / "configuration.md");
  const std::string committed{std::istreambuf_iterator<char>(file), {}};
  EXPECT_EQ(committed, config_markdown()) << "run: temper --help-config-markdown > docs/configuration.md";
}

TEST(KeyTable, DefaultsAreAllowed) {
  for (const KeySpec& key : key_table()) {
    const auto text = field_text(key, Sections());
    if (!text || *text == "\"\"" || *text == "[]") continue;
    EXPECT_NO_THROW(parse_config(kBase, {key.name.starts_with("model.init.") ? "run.seed=1" : key.name + "=" + *text}))
        << key.name;
  }
}

TEST(KeyTable, HasNoKeyTwice) {
  std::set<std::string> names;
  for (const KeySpec& key : key_table()) EXPECT_TRUE(names.insert(key.name).second) << key.name;
}

}  // namespace
}  // namespace temper
