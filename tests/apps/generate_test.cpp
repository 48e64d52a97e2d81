// temper generate and temper score on a tiny random model with the byte tokenizer, as a user runs them.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <nlohmann/json.hpp>
#include <sstream>

#include "data/tokenizer.h"
#include "model/hf_directory.h"
#include "model/initialize.h"
#include "tests/apps/run_temper.h"

namespace temper {
namespace {

using nlohmann::json;
using testing::AllOf;
using testing::HasSubstr;

class Generate : public testing::Test {
 protected:
  Generate()
      : model_(folder_.path() + "/model"),
        prompts_(folder_.path() + "/prompts.jsonl"),
        out_(folder_.path() + "/out.jsonl") {
    ModelInit init;
    init.family = "llama";
    init.hidden_size = 32;
    init.num_layers = 2;
    init.num_heads = 4;
    init.num_kv_heads = 2;
    init.head_dim = 16;
    init.max_position_embeddings = 96;
    const Tokenizer tokenizer = Tokenizer::bytes();
    TokenizerFacts facts;
    facts.vocab_size = tokenizer.vocab_size();
    facts.eos_token_ids.assign(tokenizer.eos_ids().begin(), tokenizer.eos_ids().end());
    const ModelConfig config = new_model_config(init, facts);
    FlatParameters parameters(config);
    initialize_parameters(config, 5, parameters);
    // Wide enough that the next token depends on all before it.
    for (const ParameterSpec& spec : parameters.specs())
      if (spec.shape.size() == 2) parameters[spec.name].mul_(15);
    make_directories(model_);
    write_model_files(model_, config, parameters, at::kFloat);
    tokenizer.save(model_);
  }

  RunResult generate(const std::string& prompts, std::vector<std::string> more) {
    write_file_atomically(prompts_, prompts);
    std::vector<std::string> arguments = {"generate", "--model", model_,    "--prompts", prompts_,
                                          "--out",    out_,      "--dtype", "f32"};
    arguments.insert(arguments.end(), more.begin(), more.end());
    return run_temper(arguments);
  }

  std::vector<json> output() const {
    std::istringstream text(read_file(out_));
    std::vector<json> lines;
    for (std::string line; std::getline(text, line);) lines.push_back(json::parse(line));
    return lines;
  }

  TemporaryFolder folder_;
  const std::string model_, prompts_, out_;
};

constexpr const char* kPrompts =
    "{\"prompt\": \"a long prompt, longer than the others\"}\n{\"prompt_token_ids\": [104, 105]}\n{\"prompt\": "
    "\"x\"}\n";

TEST_F(Generate, WritesTheCompletionsOfEveryPromptInInputOrder) {
  const RunResult result = generate(kPrompts, {"--num-completions", "3", "--max-new-tokens", "20"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto lines = output();
  ASSERT_EQ(lines.size(), 3u);
  EXPECT_EQ(lines[1]["prompt_token_ids"], json({104, 105}));
  const Tokenizer tokenizer = Tokenizer::bytes();
  for (size_t i = 0; i < lines.size(); ++i) {
    EXPECT_EQ(lines[i]["index"], i);
    ASSERT_EQ(lines[i]["completions"].size(), 3u);
    EXPECT_NE(lines[i]["completions"][0]["token_ids"], lines[i]["completions"][1]["token_ids"]);
    for (const json& completion : lines[i]["completions"]) {
      const auto ids = completion["token_ids"].get<std::vector<int32_t>>();
      EXPECT_EQ(completion["logprobs"].size(), ids.size());
      EXPECT_EQ(completion["text"], tokenizer.decode(ids));
      EXPECT_EQ(completion["finish_reason"], ids.back() == tokenizer.eos_ids()[0] ? "stop" : "length");
      if (completion["finish_reason"] == "length") EXPECT_EQ(ids.size(), 20u);
    }
  }
}

TEST_F(Generate, RepeatsWithTheSeedAndDiffersWithAnother) {
  ASSERT_EQ(generate(kPrompts, {"--seed", "4"}).exit_code, 0);
  const std::string first = read_file(out_);
  ASSERT_EQ(generate(kPrompts, {"--seed", "4"}).exit_code, 0);
  EXPECT_EQ(read_file(out_), first);
  ASSERT_EQ(generate(kPrompts, {"--seed", "5"}).exit_code, 0);
  EXPECT_NE(read_file(out_), first);
}

TEST_F(Generate, LogprobsAreWhatScoreGives) {
  ASSERT_EQ(generate(kPrompts, {"--temperature", "0.7", "--top-k", "40"}).exit_code, 0);
  const auto lines = output();
  std::string sequences;
  for (const json& line : lines) {
    json ids = line["prompt_token_ids"];
    for (const json& id : line["completions"][0]["token_ids"]) ids.push_back(id);
    sequences += json({{"token_ids", ids}}).dump() + "\n";
  }
  sequences += "{\"text\": \"hi\"}\n{\"token_ids\": [7]}\n{\"token_ids\": []}\n";
  const std::string input = folder_.path() + "/input.jsonl";
  write_file_atomically(input, sequences);
  const RunResult result = run_temper({"score", "--model", model_, "--input", input, "--out", out_, "--dtype", "f32"});
  ASSERT_EQ(result.exit_code, 0) << result.err;
  const auto scores = output();
  ASSERT_EQ(scores.size(), 6u);
  for (size_t i = 0; i < lines.size(); ++i) {
    const json& drawn = lines[i]["completions"][0]["logprobs"];
    const size_t prompt = lines[i]["prompt_token_ids"].size();
    ASSERT_EQ(scores[i]["logprobs"].size(), prompt + drawn.size());
    EXPECT_TRUE(scores[i]["logprobs"][0].is_null());
    for (size_t t = 0; t < drawn.size(); ++t)
      EXPECT_NEAR(scores[i]["logprobs"][prompt + t].get<double>(), drawn[t].get<double>(), 1e-5);
  }
  EXPECT_EQ(scores[3]["token_ids"], json({104, 105}));
  EXPECT_EQ(scores[3]["logprobs"].size(), 2u);
  EXPECT_EQ(scores[4]["logprobs"], json::array({nullptr}));
  EXPECT_EQ(scores[5]["logprobs"], json::array());
}

TEST_F(Generate, TemperatureZeroIgnoresTheSeed) {
  ASSERT_EQ(generate(kPrompts, {"--temperature", "0", "--seed", "1"}).exit_code, 0);
  const std::string first = read_file(out_);
  ASSERT_EQ(generate(kPrompts, {"--temperature", "0", "--seed", "2"}).exit_code, 0);
  EXPECT_EQ(read_file(out_), first);
}

TEST_F(Generate, DeterministicBitsDoNotDependOnBatchMatesNorThreads) {
  const std::string first = R"({"prompt": "one"})"
                            "\n",
                    more = R"({"prompt": "two, which is longer"})"
                           "\n";
  const auto completions = [&](const std::string& prompts, const char* num_completions, const char* threads) {
    setenv("OMP_NUM_THREADS", threads, 1);
    const RunResult result = generate(prompts, {"--deterministic", "--num-completions", num_completions});
    EXPECT_EQ(result.exit_code, 0) << result.err;
    const std::string text = read_file(out_);
    return json::parse(text.substr(0, text.find('\n')))["completions"][0].dump();
  };
  const char* before = getenv("OMP_NUM_THREADS");
  const std::string threads = before == nullptr ? "2" : before;
  const std::string alone = completions(first, "1", "1");
  EXPECT_EQ(completions(first + more + more, "5", "2"), alone);
  EXPECT_EQ(completions(first + more, "3", "3"), alone);
  setenv("OMP_NUM_THREADS", threads.c_str(), 1);
}

TEST_F(Generate, BadInputLeavesNoFileBehind) {
  const auto refuses = [&](const std::string& prompts, const std::vector<std::string>& options, int exit_code,
                           const testing::Matcher<std::string>& message) {
    const RunResult result = generate(prompts, options);
    EXPECT_EQ(result.exit_code, exit_code) << result.err;
    EXPECT_THAT(result.err, message);
    EXPECT_FALSE(file_exists(out_));
  };
  refuses("{\"prompt\": \"x\"}\n{\"prompt\": \n", {}, 5, HasSubstr("prompts.jsonl:2"));
  refuses("{\"prompt\": \"x\"}\n{\"question\": \"x\"}\n", {}, 5,
          AllOf(HasSubstr("prompts.jsonl:2"), HasSubstr("question")));
  refuses("", {}, 5, HasSubstr("is empty"));
  refuses("{\"prompt\": \"" + std::string(200, 'x') + "\"}\n", {}, 2,
          AllOf(HasSubstr("prompts.jsonl:1"), HasSubstr("200 tokens"), HasSubstr("context is 96")));
  refuses(kPrompts, {"--top-p", "0"}, 2, HasSubstr("top_p is 0"));
  refuses(kPrompts, {"--max-new-tokens", "0"}, 2, HasSubstr("--max-new-tokens"));
  refuses(kPrompts, {"--dtype", "f16"}, 2, AllOf(HasSubstr("f16"), HasSubstr("bf16")));
  refuses(kPrompts, {"--out", folder_.path() + "/nowhere/out.jsonl"}, 3, HasSubstr("/nowhere cannot be written"));
  refuses(kPrompts, {"--out", "/dev/null"}, 3, HasSubstr("is not a file"));
  refuses(kPrompts, {"--model", folder_.path() + "/nothing"}, 3, HasSubstr("/nothing"));
}

TEST_F(Generate, ScoreNamesTheLineThatIsWrong) {
  const std::string input = folder_.path() + "/input.jsonl";
  write_file_atomically(input, "{\"token_ids\": [1]}\n{\"token_ids\": [1, 9000]}\n");
  const RunResult result = run_temper({"score", "--model", model_, "--input", input, "--out", out_});
  EXPECT_EQ(result.exit_code, 5);
  EXPECT_THAT(result.err, AllOf(HasSubstr("input.jsonl:2: token_ids[1] is 9000"), HasSubstr("0 to 259")));
  EXPECT_FALSE(file_exists(out_));
}

}  // namespace
}  // namespace temper
