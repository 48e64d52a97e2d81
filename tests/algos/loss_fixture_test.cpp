// All cases of data/loss_fixtures.json, made by tests/support/make_loss_fixtures.py: values, gradients, metrics.
#include "algos/loss_fixture.h"

#include <gtest/gtest.h>

#include <cmath>
#include <fstream>
#include <nlohmann/json.hpp>

#include "core/error.h"

namespace temper {
namespace {

using Json = nlohmann::json;

// Appends what differs by more than 1e-9 (1 + |expected|).
void compare(const Json& expected, const Json& got, const std::string& path, std::vector<std::string>* bad) {
  if (expected.is_object()) {
    for (const auto& [key, value] : expected.items()) {
      if (!got.contains(key))
        bad->push_back(path + "." + key + " is missing");
      else
        compare(value, got.at(key), path + "." + key, bad);
    }
  } else if (expected.is_array()) {
    if (!got.is_array() || got.size() != expected.size())
      bad->push_back(path + " has another size");
    else
      for (size_t i = 0; i < expected.size(); ++i) compare(expected[i], got[i], format("{}[{}]", path, i), bad);
  } else if (expected.is_null() || got.is_null()) {
    if (expected != got) bad->push_back(format("{} is {}, expected {}", path, got.dump(), expected.dump()));
  } else {
    const double e = expected.get<double>(), g = got.get<double>();
    if (!(std::abs(e - g) <= 1e-9 * (1 + std::abs(e)))) bad->push_back(format("{} is {}, expected {}", path, g, e));
  }
}

class LossCases : public ::testing::TestWithParam<Json> {
 public:
  static std::vector<Json> all() {
    std::ifstream file(TEMPER_TEST_DATA "/loss_fixtures.json");
    std::vector<Json> cases = Json::parse(file);
    return cases;
  }
};

TEST_P(LossCases, AgreeWithAnImplementationOfTheFormulasInPython) {
  LossFixture fixture = parse_loss_fixture(GetParam()["fixture"].dump());
  const Json got = Json::parse(evaluate_loss_fixture(fixture));
  std::vector<std::string> bad;
  compare(GetParam()["expected"], got, "", &bad);
  EXPECT_TRUE(bad.empty()) << bad.size() << " differ: " << join(bad, "\n");
}

INSTANTIATE_TEST_SUITE_P(LossFixture, LossCases, ::testing::ValuesIn(LossCases::all()), [](const auto& instance) {
  std::string name = instance.param["name"].template get<std::string>();
  for (char& c : name)
    if (!std::isalnum(static_cast<unsigned char>(c))) c = c == '+' ? 'p' : '_';
  return name;
});

// ---- what is refused ----

// A good fixture, changed by `edit`; what the error says.
template <class Kind, class Edit>
std::string refusal(const Edit& edit) {
  Json good = Json::parse(R"({"algo": {}, "groups": [
    {"completions": [
      {"mask": [1, 1, 0], "reward": 1.0, "policy_logprobs": [-1, -2, -1], "old_logprobs": [-1, -2, -1]},
      {"mask": [1], "reward": 0.0, "policy_logprobs": [-1], "old_logprobs": [-1.5]}]}]})");
  edit(good);
  try {
    parse_loss_fixture(good.dump());
  } catch (const Kind& error) {
    return error.what();
  }
  ADD_FAILURE() << "not refused, or by another kind of error: " << good.dump();
  return "";
}

#define EXPECT_SAYS(text, ...)                                                    \
  do {                                                                            \
    const std::string said = (text);                                              \
    for (const char* words : {__VA_ARGS__})                                       \
      EXPECT_NE(said.find(words), std::string::npos) << words << " in: " << said; \
  } while (false)

Json& completion(Json& root, int i) { return root["groups"][0]["completions"][i]; }

TEST(LossFixture, AMissingArrayIsNamedWithTheKeyThatNeedsIt) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["kl_coef"] = 0.1; }),
              "groups[0].completions[0].ref_logprobs", "algo.kl_coef = 0.1");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 1).erase("old_logprobs"); }),
              "groups[0].completions[1].old_logprobs is missing", "algo.policy_loss = clip");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 1).erase("mask"); }), "groups[0].completions[1].mask");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["adv_estimator"] = "remax"; }), "groups[0].baseline_reward",
              "algo.adv_estimator = remax");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["adv_estimator"] = "gae"; }), "values", "gae");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["entropy_coef"] = 0.1; }), "entropies",
              "algo.entropy_coef = 0.1");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["rollout_is"] = "token"; }), "behavior_logprobs",
              "algo.rollout_is");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                f["algo"]["rollout_rs"] = {{"token_k3", 0.1}};
              }),
              "behavior_logprobs", "algo.rollout_rs");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["distill_coef"] = 1; }), "teacher_logprobs",
              "algo.distill_coef = 1");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["distill_loss"] = "jsd"; }), "policy_logits",
              "algo.distill_loss = jsd");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["preset"] = "dpo"; }), "ref_logprobs",
              "algo.policy_loss = dpo");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["preset"] = "reward_model"; }), "values",
              "algo.policy_loss = reward_model");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                completion(f, 0)["entropies"] = {1, 1, 1};
              }),
              "groups[0].completions[1].entropies", "all or to none");
}

TEST(LossFixture, AWrongLengthIsNamed) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                completion(f, 0)["old_logprobs"] = {-1, -2};
              }),
              "groups[0].completions[0].old_logprobs has 2 entries", "mask has 3");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0)["mask"] = Json::array(); }), "mask is empty");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                for (int i : {0, 1}) completion(f, i).erase("reward"), completion(f, i)["rewards"] = {1, 2};
                completion(f, 1)["rewards"] = {1};
              }),
              "groups[0].completions[1].rewards has 1 entries", "2");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                for (int i : {0, 1}) completion(f, i).erase("reward"), completion(f, i)["rewards"] = {1, 2};
                f["reward"]["weights"] = {1};
              }),
              "reward.weights has 1 entries", "2");
}

TEST(LossFixture, AnUnknownFieldIsNamedWithTheNearest) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                completion(f, 0)["ref_logprob"] = {1, 1, 1};
              }),
              "unknown field groups[0].completions[0].ref_logprob", "the nearest is ref_logprobs");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["group"] = 1; }), "unknown field group", "groups");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["rollout"]["max_length"] = 8; }), "rollout.max_length",
              "max_completion_length");
}

TEST(LossFixture, RewardsAreOfExactlyOneKind) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0)["rewards"] = {1}; }), "exactly one of",
              "token_rewards");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 1).erase("reward"); }),
              "groups[0].completions[1].reward");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0).erase("reward"), completion(f, 1).erase("reward"); }),
              "no reward", "algo.adv_estimator = grpo");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["algo"]["adv_estimator"] = "gdpo"; }), "rewards", "gdpo");
}

TEST(LossFixture, GroupsHaveTheSizeTheLossNeeds) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["groups"] = Json::array(); }), "groups is empty");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { f["groups"][0]["completions"] = Json::array(); }),
              "groups[0].completions is empty");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                f["algo"]["preset"] = "dpo";
                f["groups"][0]["completions"].push_back(completion(f, 0));
              }),
              "groups[0] has 3 completions", "[chosen, rejected]");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                f["algo"]["adv_estimator"] = "grpo_passk";
                f["groups"][0]["completions"].erase(1);
              }),
              "groups[0]", "grpo_passk", "two or more");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) {
                f["algo"]["preset"] = "reward_model";
                completion(f, 1)["mask"] = {0};
              }),
              "groups[0].completions[1].mask", "reward_model");
}

TEST(LossFixture, AMaskIsZeroOrOne) {
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0)["mask"][1] = 2; }),
              "groups[0].completions[0].mask[1] is 2", "0 and 1");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0)["mask"][1] = 0.5; }), "mask[1] is 0.5");
  EXPECT_SAYS(refusal<FormatError>([](Json& f) { completion(f, 0)["mask"][1] = true; }), "mask[1] is true");
}

TEST(LossFixture, TextThatIsNoJsonIsRefused) {
  for (const char* text : {"", "{", "[1, 2", "{\"algo\": {}} x", "nan", "{'algo': 1}", "{\"a\": nan}", "\xff\xfe"})
    EXPECT_THROW(parse_loss_fixture(text), FormatError) << text;
  EXPECT_THROW(parse_loss_fixture("[]"), FormatError);
  EXPECT_THROW(parse_loss_fixture(R"({"algo": {}, "algo": {}, "groups": []})"), FormatError);
  EXPECT_THROW(parse_loss_fixture(std::string(100000, '[') + std::string(100000, ']')), FormatError);
}

TEST(LossFixture, ANumberThatIsNotFiniteIsNamedWithItsToken) {
  const std::string text = R"({"groups": [{"completions": [{"mask": [1, 1], "reward": 1, "policy_logprobs": [-1, -1],
    "old_logprobs": [-1, TOKEN]}]}]})";
  for (const std::string token : {"NaN", "Infinity", "-Infinity", "1e999", "-1e400"}) {
    std::string bad = text;
    bad.replace(bad.find("TOKEN"), 5, token);
    try {
      parse_loss_fixture(bad);
      ADD_FAILURE() << token << " was accepted";
    } catch (const NumericsError& error) {
      EXPECT_SAYS(error.what(), "groups[0].completions[0].old_logprobs[1]", token.c_str());
    }
  }
  EXPECT_THROW(parse_loss_fixture(R"({"algo": {"kl_coef": NaN}, "groups": []})"), NumericsError);
}

TEST(LossFixture, WordsLikeNaNInsideStringsAreNotNumbers) {
  LossFixture fixture = parse_loss_fixture(R"({"comment": "NaN, \"Infinity\" and 1e999", "groups": [{"completions": [
    {"mask": [1], "reward": 1, "policy_logprobs": [-1], "old_logprobs": [-1]}]}]})");
  EXPECT_EQ(fixture.batch.num_tokens(), 1);
}

TEST(LossFixture, AResultThatOverflowsIsRefused) {
  LossFixture fixture =
      parse_loss_fixture(R"({"algo": {"kl_coef": 0.1}, "groups": [{"completions": [{"mask": [1], "reward": 1,
    "policy_logprobs": [-1000], "old_logprobs": [-1], "ref_logprobs": [-1]}]}]})");
  EXPECT_THROW(evaluate_loss_fixture(fixture), NumericsError);
}

TEST(LossFixture, MaskedNumbersChangeNothingNotEvenByOverflowing) {
  const char* text = R"({"algo": {"preset": "PRESET", "kl_coef": 0.1}, "groups": [{"completions": [
    {"mask": [1, 0], "reward": 1, "policy_logprobs": [-1, BIG], "old_logprobs": [-1.1, -1], "ref_logprobs": [-1.2, -1]},
    {"mask": [1, 0], "reward": 0, "policy_logprobs": [-1, -2], "old_logprobs": [-1.3, -1], "ref_logprobs": [-1.2, -1]}]}]})";
  for (const std::string preset : {"grpo", "gspo", "cispo", "sapo", "gmpo", "rloo", "opo", "sft"}) {
    std::string results[2];
    for (const bool big : {false, true}) {
      std::string fixture_text = text;
      fixture_text.replace(fixture_text.find("PRESET"), 6, preset);
      fixture_text.replace(fixture_text.find("BIG"), 3, big ? "-5000" : "-1");
      LossFixture fixture = parse_loss_fixture(fixture_text);
      results[big] = evaluate_loss_fixture(fixture);
    }
    EXPECT_EQ(results[0], results[1]) << preset;
  }
}

TEST(LossFixture, SettingsAreRefusedByKeyAndFix) {
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["epsilon_high"] = 0.28; }), "algo.epsilon_high",
              "algo.clip_ratio_high");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["clip_ratio_hgh"] = 0.28; }), "algo.clip_ratio_hgh",
              "clip_ratio_high");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["kl_estimator"] = "k4"; }), "algo.kl_estimator", "k3+");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["clip_ratio_c"] = 0.5; }), "algo.clip_ratio_c", "0.5");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["clip_ratio_c"] = 1; }), "algo.clip_ratio_c");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["gamma"] = 1.5; }), "algo.gamma", "[0, 1]");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["gamma"] = "high"; }), "algo.gamma");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["gamma"] = nullptr; }), "algo.gamma", "null");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["filter_groups"] = 1; }), "algo.filter_groups",
              "true or false");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["a=b"] = 1; }), "a=b");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"]["overlong_buffer"] = {{"length", 4}};
              }),
              "algo.overlong_buffer.length", "overlong_buffer.len");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"]["overlong_buffer"] = {{"len", 4}};
              }),
              "rollout.max_completion_length", "algo.overlong_buffer.len = 4");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["preset"] = "dr_grpo"; }), "rollout.max_completion_length",
              "seq-mean-token-sum-norm");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"] = {{"preset", "gmpo"}, {"rollout_is", "token"}};
              }),
              "gmpo", "rollout_is");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"] = {{"preset", "gdpo"}, {"overlong_buffer", {{"len", 2}}}};
              }),
              "gdpo", "overlong_buffer");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"] = {{"preset", "gdpo"}, {"kl_coef", 0.1}, {"kl_placement", "reward"}};
              }),
              "gdpo", "kl_placement");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["distill_top_k"] = 4; }), "distill_top_k", "forward_kl");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["distill_top_k"] = 1.5; }), "distill_top_k", "integer");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) {
                f["algo"]["rollout_rs"] = {{"token_k4", 0.1}};
              }),
              "token_k4", "seq_mean_k3");
  EXPECT_SAYS(refusal<ConfigError>([](Json& f) { f["algo"]["rollout_rs"] = {{"seq_max_k1", 2}}; }), "seq_max_k1");
}

TEST(LossFixture, AWholeNumberMayBeWrittenWithAPoint) {
  const std::string text = R"({"algo": {"overlong_buffer": {"len": 2.0}, "kl_ctrl": {"horizon": 100.0}}, "rollout":
    {"max_completion_length": 4.0}, "groups": [{"completions": [{"mask": [1.0], "reward": 1, "policy_logprobs": [-1],
    "old_logprobs": [-1]}]}]})";
  const LossFixture fixture = parse_loss_fixture(text);
  EXPECT_EQ(fixture.settings.overlong_buffer.len, 2);
  EXPECT_EQ(fixture.context.max_completion_length, 4);
}

TEST(LossFixture, AFileThatIsNotThereIsAnIoError) {
  EXPECT_THROW(read_loss_fixture("/nowhere/fixture.json"), IoError);
  EXPECT_THROW(read_loss_fixture(TEMPER_TEST_DATA), IoError);
}

}  // namespace
}  // namespace temper
