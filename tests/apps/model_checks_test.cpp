// The models of a pipeline against each other, from folders that hold little more than a config.json: nothing is
// loaded.
#include "apps/model_checks.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

#include "config/load.h"
#include "core/error.h"
#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

constexpr int64_t kBytes = 260;  // the byte tokenizer's vocabulary

class ModelChecks : public testing::Test {
 protected:
  // A folder as check_models reads it.
  std::string directory(const std::string& name, int64_t vocab_size, const std::string& kind = "ForCausalLM",
                        const json& more = json::object()) const {
    json config = {{"architectures", {"Llama" + kind}}, {"model_type", "llama"},    {"hidden_size", 32},
                   {"intermediate_size", 64},           {"num_hidden_layers", 1},   {"num_attention_heads", 2},
                   {"vocab_size", vocab_size},          {"rms_norm_eps", 0.000001}, {"max_position_embeddings", 64}};
    config.update(more);
    const std::string path = folder_.path() + "/" + name;
    make_directories(path);
    for (const char* file : {"model.safetensors", "tokenizer.json"}) write_file_atomically(path + "/" + file, "");
    write_file_atomically(path + "/config.json", config.dump());
    return path;
  }
  std::string judge(const std::string& name, int64_t vocab_size = kBytes) const {
    return directory(name, vocab_size, "ForSequenceClassification", {{"id2label", {{"0", "LABEL_0"}}}});
  }
  static void check(const std::string& toml, const std::vector<std::string>& overrides) {
    check_models(parse_config(toml, overrides));
  }
  template <class Kind>
  static std::string error_of(const std::string& toml, const std::vector<std::string>& overrides) {
    try {
      check(toml, overrides);
    } catch (const Kind& error) {
      return error.what();
    }
    ADD_FAILURE() << "nothing was wrong with " << testing::PrintToString(overrides);
    return "";
  }

  TemporaryFolder folder_;
  const std::string pipeline_ = R"(
[model]
init = {family = "llama", hidden_size = 32, num_layers = 1, num_heads = 2}
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
algo = {preset = "ppo", kl_coef = 0.1}
reward = {functions = ["task", "model"], weights = [0, 1], model = "stage:judge"}
critic.path = "stage:judge"
[[stage]]
name = "distill"
algo.preset = "distill"
model = {path = "stage:sft", teacher = "stage:ppo"}
)";
};

TEST_F(ModelChecks, APipelineOfItsOwnModelsFits) {
  EXPECT_NO_THROW(check(pipeline_, {}));
  EXPECT_NO_THROW(check(pipeline_, {"--model.path=" + directory("m", 500)}));  // all stages follow
}

TEST_F(ModelChecks, ModelsOfOneVocabularyFit) {
  const std::string judge_path = judge("judge");
  EXPECT_NO_THROW(
      check(pipeline_, {"--stage.ppo.model.reference=" + directory("reference", kBytes),
                        "--stage.distill.model.teacher=" + directory("teacher", kBytes),
                        "--stage.ppo.reward.model=" + judge_path, "--stage.ppo.critic.path=" + judge_path}));
  // A critic may take a language model's body, a reward model may start from a reward model.
  EXPECT_NO_THROW(check(pipeline_, {"--stage.ppo.critic.path=" + directory("body", kBytes)}));
  EXPECT_NO_THROW(check(pipeline_, {"--stage.judge.model.path=" + judge_path}));
}

TEST_F(ModelChecks, WhatIsMissingIsNamedWithStageKeyAndFix) {
  const std::string none = folder_.path() + "/none";
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--model.path=" + none}),
              AllOf(HasSubstr("stage sft: model.path: " + none), HasSubstr("no such model folder"),
                    HasSubstr("Give the path of a folder in the Hugging Face layout")));
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--stage.ppo.model.reference=" + none}),
              HasSubstr("stage ppo: model.reference: " + none));
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--stage.ppo.critic.path=" + none}), HasSubstr("stage ppo: critic.path: "));
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--stage.ppo.reward.model=" + none}),
              HasSubstr("stage ppo: reward.model: "));
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--stage.distill.model.teacher=" + none}),
              HasSubstr("stage distill: model.teacher: "));
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--model.init.tokenizer=" + none}), HasSubstr("stage sft: model.init: "));
  // What no stage uses is not asked for.
  EXPECT_NO_THROW(check(pipeline_, {"--stage.sft.model.teacher=" + none, "--stage.judge.critic.path=" + none}));
}

TEST_F(ModelChecks, FoldersMustBeWhole) {
  const std::string path = directory("m", kBytes);
  std::filesystem::remove(path + "/tokenizer.json");
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--model.path=" + path}),
              AllOf(HasSubstr("stage sft: model.path"), HasSubstr("tokenizer.json")));
  EXPECT_NO_THROW(check(pipeline_, {"--stage.distill.model.teacher=" + path}));  // a teacher reads the student's tokens
  std::filesystem::remove(path + "/model.safetensors");
  EXPECT_THAT(error_of<IoError>(pipeline_, {"--stage.distill.model.teacher=" + path}),
              AllOf(HasSubstr("stage distill: model.teacher"), HasSubstr("Fetch the model's weights")));
  write_file_atomically(path + "/config.json", "{");
  EXPECT_THAT(error_of<FormatError>(pipeline_, {"--stage.distill.model.teacher=" + path}),
              AllOf(HasSubstr("stage distill: model.teacher: " + path + "/config.json: is not JSON"),
                    HasSubstr("Fetch the file again")));
  write_file_atomically(path + "/config.json", "{\"model_type\": \"gpt2\", \"architectures\": [\"GPT2LMHeadModel\"]}");
  EXPECT_THAT(error_of<FormatError>(pipeline_, {"--stage.distill.model.teacher=" + path}),
              AllOf(HasSubstr("GPT2LMHeadModel"), HasSubstr("Supported are LlamaForCausalLM")));
}

TEST_F(ModelChecks, AnotherVocabularyIsRefusedWithBothSizes) {
  const std::string other = directory("other", 300);
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.distill.model.teacher=" + other}),
              AllOf(HasSubstr("stage distill: model.teacher = " + other + ": its vocabulary has 300 tokens"),
                    HasSubstr("(stage:sft) has 260"), HasSubstr("Use a model with the same tokenizer")));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.model.reference=" + other}),
              HasSubstr("stage ppo: model.reference"));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.critic.path=" + other}),
              HasSubstr("stage ppo: critic.path"));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.reward.model=" + judge("judge", 300)}),
              HasSubstr("stage ppo: reward.model"));
  // A stage of another model beside those of the pipeline.
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.model.path=" + other}),
              AllOf(HasSubstr("stage ppo: critic.path = stage:judge: its vocabulary has 260"),
                    HasSubstr("(" + other + ") has 300")));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--model.init.vocab_size=100"}),
              AllOf(HasSubstr("stage sft: model.init: model.init.vocab_size is 100"), HasSubstr("260")));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--model.init.vocab_size=300",
                                                "--stage.distill.model.teacher=" + directory("teacher", kBytes)}),
              AllOf(HasSubstr("has 260 tokens"), HasSubstr("has 300")));
}

TEST_F(ModelChecks, HeadsMustBeOfTheRightKind) {
  const std::string judge_path = judge("judge"), body = directory("body", kBytes);
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.reward.model=" + body}),
              AllOf(HasSubstr("stage ppo: reward.model = " + body), HasSubstr("LlamaForCausalLM"),
                    HasSubstr("ForSequenceClassification with one label"), HasSubstr("algo.preset = reward_model")));
  for (const char* key : {"ppo.model.reference", "distill.model.teacher", "ppo.model.path"})
    EXPECT_THAT(
        error_of<ConfigError>(pipeline_, {"--stage." + std::string(key) + "=" + judge_path}),
        AllOf(HasSubstr(std::string(key).substr(std::string(key).find('.') + 1) + " = " + judge_path),
              HasSubstr("LlamaForSequenceClassification"), HasSubstr("Name the directory of a language model")));
  const std::string two = directory("two", kBytes, "ForSequenceClassification");  // transformers: two by default
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.reward.model=" + two}),
              AllOf(HasSubstr("has 2 labels (id2label in config.json)"), HasSubstr("Choose a model")));
  EXPECT_THAT(error_of<ConfigError>(pipeline_, {"--stage.ppo.critic.path=" + two}), HasSubstr("has 2 labels"));
}

TEST_F(ModelChecks, TheTeachersMostLikelyTokensAreNotMoreThanThereAre) {
  const std::vector<std::string> gkd = {"--stage.distill.algo.preset=gkd",
                                        "--stage.distill.algo.distill_loss=forward_kl"};
  const auto with = [&](const std::string& top_k) {
    std::vector<std::string> overrides = gkd;
    overrides.push_back("--stage.distill.algo.distill_top_k=" + top_k);
    return overrides;
  };
  EXPECT_THAT(error_of<ConfigError>(pipeline_, with("261")),
              AllOf(HasSubstr("stage distill: algo.distill_top_k = 261 exceeds the vocabulary of 260"),
                    HasSubstr("set it to 0")));
  EXPECT_NO_THROW(check(pipeline_, with("260")));
}

}  // namespace
}  // namespace temper
