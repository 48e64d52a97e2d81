#include "apps/serve_engine.h"

#include <gtest/gtest.h>

#include <atomic>
#include <future>
#include <thread>

#include "core/error.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

using namespace std::chrono_literals;

GenerationRequest prompt(uint64_t seed, int num_completions = 1, int32_t max_new_tokens = 8, int64_t length = 5) {
  GenerationRequest request;
  request.prompt_token_ids = random_prompt(seed, length);
  request.num_completions = num_completions;
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.ignore_eos = true;
  request.sampling.seed = seed;
  return request;
}

// An engine in a thread of its own, which stops at the end.
class ServeEngineTest : public testing::Test {
 protected:
  ServeEngineTest() : engine_(tiny_.model, tiny_.tokenizer, {.max_num_seqs = 4}), served_(engine_, 16) {}
  ~ServeEngineTest() override { stop(); }

  void start(double drain_timeout_s = 60) {
    ended_ = std::async(std::launch::async,
                        [this, drain_timeout_s] { served_.run([this] { return stop_.load(); }, drain_timeout_s); });
  }
  void stop() {
    stop_ = true;
    if (ended_.valid()) ended_.get();
  }
  Mail until_accepted(ServeEngine::Ticket& ticket) {
    Mail mail;
    while (!mail.accepted && mail.refusal.empty() && !mail.closed) mail = ticket.take(1s);
    return mail;
  }
  std::vector<GenerationResult> until_done(ServeEngine::Ticket& ticket, size_t num_prompts) {
    std::vector<GenerationResult> results;
    while (results.size() < num_prompts) {
      Mail mail = ticket.take(1s);
      EXPECT_TRUE(mail.tokens.empty());
      if (mail.closed) return results;
      for (GenerationResult& result : mail.results) results.push_back(std::move(result));
    }
    return results;
  }

  TinyModel tiny_;
  Engine engine_;
  ServeEngine served_;
  std::atomic<bool> stop_{false};
  std::future<void> ended_;
};

TEST_F(ServeEngineTest, ResultsAreTheEnginesWhateverElseIsAsked) {
  std::vector<std::vector<int32_t>> alone;
  for (uint64_t seed = 0; seed < 8; ++seed) {
    engine_.submit(prompt(seed, 2));
    alone.push_back(run_to_end(engine_).at(0).completions.at(1).token_ids);
  }
  start();
  std::vector<std::thread> clients;
  for (uint64_t seed = 0; seed < 8; ++seed)
    clients.emplace_back([&, seed] {
      const auto ticket = served_.submit({prompt(seed, 2)}, false);
      ASSERT_NE(ticket, nullptr);
      const auto results = until_done(*ticket, 1);
      EXPECT_EQ(results.at(0).id, 0);
      EXPECT_EQ(results.at(0).completions.at(1).token_ids, alone[seed]);
    });
  for (std::thread& client : clients) client.join();
  EXPECT_EQ(served_.stats().num_accepted, 8);
  EXPECT_EQ(served_.stats().num_cancelled, 0);
  EXPECT_EQ(served_.stats().num_completions, 0);
}

TEST_F(ServeEngineTest, AStreamHasEveryTokenWithItsPromptsIndex) {
  start();
  const auto other = served_.submit({prompt(9)}, false);  // so that ids do not begin at 0
  const auto ticket = served_.submit({prompt(1, 2), prompt(2, 2)}, true);
  std::map<std::pair<int64_t, int32_t>, std::vector<int32_t>> tokens;
  std::map<int64_t, GenerationResult> results;
  while (results.size() < 2) {
    Mail mail = ticket->take(1s);
    for (const StepToken& token : mail.tokens) tokens[{token.id, token.completion}].push_back(token.token_id);
    for (GenerationResult& result : mail.results) results.emplace(result.id, std::move(result));
  }
  for (const auto& [id, result] : results)
    for (int32_t i = 0; i < 2; ++i) {
      const std::vector<int32_t>& streamed = tokens[{id, i}];
      EXPECT_EQ(streamed, result.completions.at(static_cast<size_t>(i)).token_ids);
    }
  EXPECT_EQ(tokens.size(), 4u);
}

TEST_F(ServeEngineTest, AnImpossiblePromptIsRefusedWithAllOfItsRequestAndHarmsNoOther) {
  start();
  const auto good = served_.submit({prompt(1)}, false);
  const auto bad = served_.submit({prompt(1), prompt(2, 1, 8, 500)}, false);
  const Mail mail = until_accepted(*bad);
  EXPECT_FALSE(mail.accepted);
  EXPECT_NE(mail.refusal.find("500 tokens"), std::string::npos) << mail.refusal;
  EXPECT_EQ(until_done(*good, 1).size(), 1u);
  EXPECT_EQ(served_.stats().num_refused, 1);
}

TEST_F(ServeEngineTest, AWithdrawnRequestIsCancelled) {
  const auto other = served_.submit({prompt(1, 1, 100)}, false);
  auto withdrawn = served_.submit({prompt(2, 3, 100)}, true);
  start();
  until_accepted(*withdrawn);
  withdrawn.reset();
  EXPECT_EQ(until_done(*other, 1).at(0).completions.at(0).token_ids.size(), 100u);
  EXPECT_EQ(served_.stats().num_cancelled, 1);
  EXPECT_EQ(served_.stats().num_completions, 1);
  EXPECT_LT(served_.stats().engine.num_completion_tokens, 400);
  EXPECT_EQ(served_.stats().engine.num_used_blocks, 0);
}

TEST_F(ServeEngineTest, BeyondItsBoundNothingIsTaken) {
  auto first = served_.submit({prompt(1, 10), prompt(2, 5)}, false);
  EXPECT_EQ(served_.submit({prompt(1, 2)}, false), nullptr);
  const auto fits = served_.submit({prompt(1, 1)}, false);
  EXPECT_NE(fits, nullptr);
  EXPECT_EQ(served_.stats().num_queue_full, 1);
  EXPECT_FALSE(served_.draining());
  first.reset();
  EXPECT_NE(served_.submit({prompt(1, 15)}, false), nullptr);
}

TEST_F(ServeEngineTest, StoppingFinishesWhatIsUnderWayAndTakesNothingNew) {
  auto ticket = served_.submit({prompt(1, 2, 100)}, false);
  start();
  until_accepted(*ticket);
  stop_ = true;
  while (!served_.draining()) std::this_thread::sleep_for(1ms);
  EXPECT_EQ(served_.submit({prompt(1)}, false), nullptr);
  EXPECT_EQ(until_done(*ticket, 1).at(0).completions.size(), 2u);
  ticket.reset();
  EXPECT_EQ(ended_.wait_for(10s), std::future_status::ready);
}

TEST_F(ServeEngineTest, StoppingWaitsNoLongerThanItsTimeout) {
  const auto ticket = served_.submit({prompt(1, 2, 100)}, false);
  start(0);
  stop();
  EXPECT_TRUE(ticket->take(10s).closed);
}

TEST_F(ServeEngineTest, WhatTheEngineThrowsEndsTheWaitOfEveryone) {
  for (const ParameterSpec& spec : tiny_.parameters.specs()) tiny_.parameters[spec.name].fill_(NAN);
  tiny_.model.load(tiny_.parameters, 1);
  const auto ticket = served_.submit({prompt(1)}, false);
  start();
  EXPECT_EQ(until_done(*ticket, 1).size(), 0u);
  EXPECT_THROW(ended_.get(), NumericsError);
  EXPECT_EQ(served_.submit({prompt(1)}, false), nullptr);
}

}  // namespace
}  // namespace temper
