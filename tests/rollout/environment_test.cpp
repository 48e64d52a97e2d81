// Completions of several turns, and the calculator.
#include "rollout/environment.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <stdexcept>

#include "rollout/calculator.h"
#include "rollout/inline_source.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

// Ends turns at common letters, so that random text has some, and answers as often as it is told.
class Parrot final : public Environment {
 public:
  explicit Parrot(int num_answers, std::string answer = "") : num_answers_(num_answers), answer_(std::move(answer)) {}
  const std::vector<std::string>& turn_ends() const override {
    static const std::vector<std::string> ends = {"a", "e", "i", "o", "u", "A", "E", "I", "O", "U", "!", "1", "2", "3"};
    return ends;
  }
  void reset(const Prompt&) override {}
  std::optional<std::string> step(const std::string& turn) override {
    if (num_answers_-- <= 0) return std::nullopt;
    if (answer_ == "throw") throw std::runtime_error("out of order");
    return answer_.empty() ? format("[{}]", turn.size()) : answer_;
  }

 private:
  int num_answers_;
  std::string answer_;
};

GenerationRequest request_of(int64_t id, int num_answers, int32_t max_new_tokens = 60, std::string answer = "") {
  GenerationRequest request;
  request.id = id;
  request.serial = id;
  request.prompt_token_ids = random_prompt(static_cast<uint64_t>(100 + id), 5 + 11 * id);
  request.num_completions = 4;
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.seed = 7;
  request.sampling.ignore_eos = true;
  request.environment = [num_answers, answer] { return std::make_unique<Parrot>(num_answers, answer); };
  return request;
}

std::vector<Completion> completions_of(const TinyModel& tiny, const EngineOptions& options,
                                       EngineStats* stats = nullptr, int num_answers = 3) {
  Engine engine(tiny.model, tiny.tokenizer, options);
  for (int64_t id = 0; id < 4; ++id) engine.submit(request_of(id, num_answers));
  std::vector<Completion> completions;
  for (auto& [id, result] : run_to_end(engine))
    for (Completion& completion : result.completions) completions.push_back(std::move(completion));
  if (stats != nullptr) *stats = engine.stats();
  EXPECT_EQ(engine.stats().num_used_blocks, 0);
  return completions;
}

// The tokens that an environment added stand behind a turn's end, say what it said of the turn, and carry no
// probability; the drawn ones have that of a full forward over everything before them, answers included.
TEST(EngineTurns, AnswersAreMaskedAndReadByThePolicy) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(request_of(1, 3));
  const std::vector<int32_t> prompt = request_of(1, 3).prompt_token_ids;
  int num_answers = 0;
  const auto results = run_to_end(engine);
  for (const Completion& completion : results.at(1).completions) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), completion.token_ids.begin(), completion.token_ids.end());
    const at::Tensor logprobs = at::log_softmax(tiny.full_logits(tokens).to(at::kDouble), -1);
    size_t turn_begin = 0;
    for (size_t t = 0; t < completion.token_ids.size(); ++t) {
      const auto row = static_cast<int64_t>(prompt.size() + t) - 1;
      if (completion.mask[t] == 1) {
        EXPECT_NEAR(completion.logprobs[t], logprobs[row][completion.token_ids[t]].item<double>(), 1e-5);
        continue;
      }
      const std::span<const int32_t> turn = std::span(completion.token_ids).subspan(turn_begin, t - turn_begin);
      const auto expected = tiny.tokenizer.encode(format("[{}]", tiny.tokenizer.decode(turn, false).size()));
      for (const int32_t id : expected) {
        EXPECT_EQ(completion.token_ids[t], id);
        EXPECT_EQ(completion.mask[t], 0);
        EXPECT_EQ(completion.logprobs[t], 0);
        EXPECT_EQ(completion.behavior_logprobs[t], 0);
        ++t;
      }
      EXPECT_EQ(completion.mask.at(t), 1);
      turn_begin = t--;
      ++num_answers;
    }
  }
  EXPECT_GT(num_answers, 4);
}

TEST(EngineTurns, ChunksPreemptionAndNeighboursDoNotChangeThem) {
  const TinyModel tiny;
  const std::vector<Completion> expected = completions_of(tiny, {});
  EngineStats stats;
  const int64_t block_bytes = Engine(tiny.model, tiny.tokenizer, {}).stats().block_bytes;
  const std::vector<EngineOptions> others = {{.max_num_seqs = 1},
                                             {.max_num_seqs = 3, .enable_prefix_sharing = false},
                                             {.max_num_seqs = 4, .max_tokens_per_step = 2},
                                             {.enable_chunked_prefill = false},
                                             {.kv_cache_memory_bytes = 12 * block_bytes}};
  for (size_t k = 0; k < others.size(); ++k) {
    const std::vector<Completion> completions = completions_of(tiny, others[k], &stats);
    ASSERT_EQ(completions.size(), expected.size());
    for (size_t i = 0; i < completions.size(); ++i) {
      EXPECT_EQ(completions[i].token_ids, expected[i].token_ids) << "options " << k << ", completion " << i;
      EXPECT_EQ(completions[i].mask, expected[i].mask);
      EXPECT_EQ(completions[i].logprobs, expected[i].logprobs);
    }
  }
  EXPECT_GT(stats.num_preemptions, 0);  // with the small cache, the last of them
}

TEST(EngineTurns, AnEpisodeThatIsOverEndsTheCompletion) {
  const TinyModel tiny;
  for (const Completion& completion : completions_of(tiny, {}, nullptr, /*num_answers=*/0)) {
    if (completion.finish_reason == FinishReason::kLength) continue;  // no turn ended
    EXPECT_THAT(completion.mask, testing::Each(1));
    const std::vector<std::string>& ends = Parrot(0).turn_ends();
    EXPECT_THAT(ends, testing::Contains(tiny.tokenizer.token_bytes(completion.token_ids.back())));
  }
}

TEST(EngineTurns, AnAnswerThatDoesNotFitEndsTheCompletionWithoutIt) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(request_of(0, 3, 60, std::string(60, 'x')));
  bool ended = false;
  const auto results = run_to_end(engine);
  for (const Completion& completion : results.at(0).completions) {
    EXPECT_THAT(completion.mask, testing::Each(1));
    EXPECT_EQ(completion.finish_reason, FinishReason::kLength);
    ended |= completion.token_ids.size() < 60;
  }
  EXPECT_TRUE(ended);
}

TEST(EngineTurns, AnEnvironmentThatFailsFailsItsCompletion) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(request_of(0, 3, 60, "throw"));
  int num_failed = 0;
  RolloutGroup group;
  group.completions = run_to_end(engine).at(0).completions;
  score_group({}, group);
  for (const Completion& completion : group.completions)
    num_failed += completion.error == "the environment failed: out of order";
  EXPECT_GT(num_failed, 0);
}

TEST(Environments, EndAfterTheirLastTurn) {
  EXPECT_EQ(make_environment(RolloutEnvironment::kNone, 1), nullptr);
  const auto environment = make_environment(RolloutEnvironment::kCalculator, 2);
  for (int episode = 0; episode < 2; ++episode) {
    environment->reset({});
    EXPECT_EQ(environment->step("let me see: <calc>2*21</calc>"), "<result>42</result>");
    EXPECT_EQ(environment->step("<calc>1</calc>"), "<result>1</result>");
    EXPECT_EQ(environment->step("<calc>1</calc>"), std::nullopt);
  }
}

TEST(Calculator, GivesWholeNumbersWholeAndSaysWhyThereIsNone) {
  EXPECT_EQ(calculate("17*23"), "391");
  EXPECT_EQ(calculate(" (1+2) / 4 - -1"), "1.75");
  EXPECT_EQ(calculate("2^40"), "1099511627776");
  EXPECT_EQ(calculate("1/3"), "0.3333333333");
  Calculator calculator;
  EXPECT_EQ(calculator.step("1</calc>"), "<result>error: no <calc> before </calc></result>");
  EXPECT_EQ(calculator.step("</calc>"), "<result>error: no <calc> before </calc></result>");
  EXPECT_EQ(calculator.step("<calc> </calc>"), "<result>error: no expression</result>");
  EXPECT_EQ(calculator.step("<calc>1/0</calc>"), "<result>error: not a finite number</result>");
  for (const char* broken : {"2+", "x", "system(1)", "1 2", "((1)"})
    EXPECT_THAT(*calculator.step(format("<calc>{}</calc>", broken)), testing::StartsWith("<result>error: ")) << broken;
  EXPECT_EQ(calculator.step(format("<calc>{}1</calc>", std::string(2000, '('))), "<result>error: too long</result>");
}

}  // namespace
}  // namespace temper
