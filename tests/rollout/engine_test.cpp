#include "rollout/engine.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

using ::testing::AllOf;
using ::testing::Each;
using ::testing::ElementsAreArray;
using ::testing::HasSubstr;
using ::testing::SizeIs;

GenerationRequest make_request(int64_t id, int64_t prompt_length, int num_completions, int32_t max_new_tokens,
                               double temperature = 1.0) {
  GenerationRequest request;
  request.id = id;
  request.serial = id;
  request.prompt_token_ids = random_prompt(static_cast<uint64_t>(100 + id), prompt_length);
  request.num_completions = num_completions;
  request.sampling.temperature = temperature;
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.seed = 7;
  request.sampling.ignore_eos = true;
  return request;
}

std::vector<GenerationRequest> mixed_requests() {
  return {make_request(0, 5, 4, 20), make_request(1, 16, 3, 40),      make_request(2, 33, 5, 9),
          make_request(3, 1, 2, 30), make_request(4, 47, 4, 25, 0.7), make_request(5, 17, 1, 12, 0.0)};
}

std::map<int64_t, GenerationResult> generate(const TinyModel& tiny, const EngineOptions& options,
                                             const std::vector<GenerationRequest>& requests,
                                             EngineStats* stats = nullptr) {
  Engine engine(tiny.model, tiny.tokenizer, options);
  for (const GenerationRequest& request : requests) engine.submit(request);
  auto results = run_to_end(engine);
  if (stats != nullptr) *stats = engine.stats();
  EXPECT_EQ(engine.stats().num_used_blocks, 0);
  return results;
}

void expect_same(const std::map<int64_t, GenerationResult>& left, const std::map<int64_t, GenerationResult>& right) {
  ASSERT_EQ(left.size(), right.size());
  for (const auto& [id, result] : left) {
    const GenerationResult& other = right.at(id);
    ASSERT_EQ(result.completions.size(), other.completions.size());
    for (size_t i = 0; i < result.completions.size(); ++i) {
      const Completion &a = result.completions[i], &b = other.completions[i];
      EXPECT_EQ(a.token_ids, b.token_ids) << "request " << id << ", completion " << i;
      EXPECT_EQ(a.text, b.text);
      EXPECT_EQ(a.finish_reason, b.finish_reason);
      EXPECT_EQ(a.logprobs, b.logprobs);  // bit for bit
      EXPECT_EQ(a.behavior_logprobs, b.behavior_logprobs);
    }
  }
}

std::string message_of(const std::function<void()>& action) {
  try {
    action();
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "no ConfigError";
}

TEST(Engine, GreedyTokensAreTheArgmaxOfFullForwards) {
  const TinyModel tiny;
  std::vector<GenerationRequest> requests;
  for (const int64_t length : {1, 5, 15, 16, 17, 33, 64})
    requests.push_back(make_request(length, length, 1, 24, /*temperature=*/0));
  const auto results = generate(tiny, {}, requests);
  for (const GenerationRequest& request : requests) {
    std::vector<int32_t> tokens = request.prompt_token_ids;
    for (int step = 0; step < 24; ++step)
      tokens.push_back(static_cast<int32_t>(tiny.full_logits(tokens).select(0, -1).argmax().item<int64_t>()));
    EXPECT_THAT(results.at(request.id).completions[0].token_ids,
                ElementsAreArray(tokens.begin() + static_cast<long>(request.prompt_token_ids.size()), tokens.end()));
  }
}

TEST(Engine, LogprobsAreTheLogSoftmaxOfAFullForwardAtBothTemperatures) {
  const TinyModel tiny;
  const auto results = generate(tiny, {}, {make_request(4, 21, 3, 30, 0.7)});
  const std::vector<int32_t> prompt = make_request(4, 21, 3, 30).prompt_token_ids;
  for (const Completion& completion : results.at(4).completions) {
    std::vector<int32_t> tokens = prompt;
    tokens.insert(tokens.end(), completion.token_ids.begin(), completion.token_ids.end());
    const at::Tensor logits = tiny.full_logits(tokens).to(at::kDouble);
    const at::Tensor plain = at::log_softmax(logits, -1), scaled = at::log_softmax(logits / 0.7, -1);
    for (size_t t = 0; t < completion.token_ids.size(); ++t) {
      const auto row = static_cast<int64_t>(prompt.size() + t) - 1;
      EXPECT_NEAR(completion.logprobs[t], plain[row][completion.token_ids[t]].item<double>(), 1e-5);
      EXPECT_NEAR(completion.behavior_logprobs[t], scaled[row][completion.token_ids[t]].item<double>(), 1e-5);
    }
  }
}

TEST(Engine, SequencesThatJoinAndLeaveDoNotChangeTheOthers) {
  const TinyModel tiny;
  const std::vector<GenerationRequest> requests = mixed_requests();
  std::map<int64_t, GenerationResult> alone;
  for (const GenerationRequest& request : requests) alone.merge(generate(tiny, {}, {request}));

  Engine engine(tiny.model, tiny.tokenizer, {});
  std::map<int64_t, GenerationResult> together;
  const auto collect = [&](std::vector<GenerationResult> results) {
    for (GenerationResult& result : results) together.emplace(result.id, std::move(result));
  };
  for (const GenerationRequest& request : requests) {
    engine.submit(request);
    for (int i = 0; i < 3; ++i) collect(engine.step());
  }
  while (!engine.idle()) collect(engine.step());
  expect_same(alone, together);
}

TEST(Engine, SharedPromptsAreComputedOnceAndChangeNothing) {
  const TinyModel tiny;
  EngineStats shared, apart;
  const auto with = generate(tiny, {}, mixed_requests(), &shared);
  const auto without = generate(tiny, {.enable_prefix_sharing = false}, mixed_requests(), &apart);
  expect_same(with, without);
  int64_t prompts = 0, copies = 0;
  for (const GenerationRequest& request : mixed_requests()) {
    const auto length = static_cast<int64_t>(request.prompt_token_ids.size());
    prompts += length;
    copies += length * request.num_completions;
  }
  EXPECT_EQ(shared.num_prefill_tokens, prompts);
  EXPECT_EQ(apart.num_prefill_tokens, copies);
  EXPECT_LT(shared.peak_used_blocks, apart.peak_used_blocks);
}

TEST(Engine, ChunkedPrefillChangesNothing) {
  const TinyModel tiny;
  const auto whole = generate(tiny, {.enable_chunked_prefill = false}, mixed_requests());
  EngineStats stats;
  const auto chunked = generate(tiny, {.max_num_seqs = 6, .max_tokens_per_step = 7}, mixed_requests(), &stats);
  expect_same(whole, chunked);
  expect_same(whole, generate(tiny, {.max_num_seqs = 6, .enable_chunked_prefill = false, .max_tokens_per_step = 7},
                              mixed_requests()));
}

TEST(Engine, PreemptionChangesNothing) {
  const TinyModel tiny;
  // They begin small and grow: 9 blocks hold all prompts and not half of what follows.
  const std::vector<GenerationRequest> growing = {make_request(0, 5, 4, 60), make_request(1, 20, 3, 50),
                                                  make_request(2, 31, 2, 64)};
  const auto plenty = generate(tiny, {}, growing);
  const int64_t block_bytes = kv_cache_shape(tiny.config, at::kFloat, 16).bytes_per_block();
  for (const bool sharing : {true, false}) {
    EngineStats stats;
    const auto scarce =
        generate(tiny, {.kv_cache_memory_bytes = 9 * block_bytes, .enable_prefix_sharing = sharing}, growing, &stats);
    EXPECT_GT(stats.num_preemptions, 0);
    EXPECT_EQ(stats.num_blocks, 9);
    expect_same(plenty, scarce);
  }
}

TEST(Engine, GroupsLargerThanAStepAreServed) {
  const TinyModel tiny;
  const auto wide = generate(tiny, {}, {make_request(1, 20, 9, 12)});
  expect_same(wide, generate(tiny, {.max_num_seqs = 2}, {make_request(1, 20, 9, 12)}));
}

TEST(Engine, DrawsDependOnSeedSerialAndCompletionAlone) {
  const TinyModel tiny;
  GenerationRequest request = make_request(1, 12, 3, 16);
  const auto first = generate(tiny, {}, {request}).at(1).completions;
  EXPECT_NE(first[0].token_ids, first[1].token_ids);
  EXPECT_NE(first[1].token_ids, first[2].token_ids);

  request.id = 99;
  EXPECT_EQ(generate(tiny, {}, {request}).at(99).completions[2].token_ids, first[2].token_ids);
  request.num_completions = 1;
  EXPECT_EQ(generate(tiny, {}, {request}).at(99).completions[0].token_ids, first[0].token_ids);
  request.sampling.seed = 8;
  EXPECT_NE(generate(tiny, {}, {request}).at(99).completions[0].token_ids, first[0].token_ids);
  request.sampling.seed = 7;
  request.serial = 2;
  EXPECT_NE(generate(tiny, {}, {request}).at(99).completions[0].token_ids, first[0].token_ids);
}

TEST(Engine, StopStringsEndTheTextBeforeThemAndKeepTheTokens) {
  const TinyModel tiny;
  GenerationRequest request = make_request(1, 12, 1, 40);
  const Completion whole = generate(tiny, {}, {request}).at(1).completions[0];
  // Three tokens in the middle that are letters, whatever the model drew: a token of the byte tokenizer is one byte.
  size_t at = 5;
  std::string stop;
  const auto plain = [&](size_t t) { return whole.token_ids[t] < 128 && whole.token_ids[t] > 0; };
  while (!(plain(at) && plain(at + 1))) ++at;
  ASSERT_LT(at + 1, whole.token_ids.size());
  for (size_t t = at; t < at + 2; ++t) stop += static_cast<char>(whole.token_ids[t]);
  request.sampling.stop = {"never drawn at all", stop};
  const Completion cut = generate(tiny, {}, {request}).at(1).completions[0];
  EXPECT_EQ(cut.finish_reason, FinishReason::kStop);
  EXPECT_THAT(cut.token_ids,
              ElementsAreArray(whole.token_ids.begin(), whole.token_ids.begin() + static_cast<long>(at) + 2));
  EXPECT_EQ(cut.text, tiny.tokenizer.decode(std::span(whole.token_ids).first(at)));
  EXPECT_THAT(cut.mask, AllOf(SizeIs(at + 2), Each(1)));
}

TEST(Engine, AnEndTokenEndsACompletionAndIsKeptUnlessIgnored) {
  const std::vector<int32_t> drawn =
      generate(TinyModel(), {}, {make_request(1, 12, 1, 40)}).at(1).completions[0].token_ids;
  const int32_t end = drawn[6];
  const auto length = std::find(drawn.begin(), drawn.end(), end) - drawn.begin() + 1;
  const TinyModel tiny(1, {end});
  GenerationRequest request = make_request(1, 12, 1, 40);
  EXPECT_EQ(generate(tiny, {}, {request}).at(1).completions[0].token_ids, drawn);
  request.sampling.ignore_eos = false;
  const Completion ended = generate(tiny, {}, {request}).at(1).completions[0];
  EXPECT_THAT(ended.token_ids, ElementsAreArray(drawn.begin(), drawn.begin() + length));
  EXPECT_EQ(ended.finish_reason, FinishReason::kStop);
  EXPECT_EQ(ended.text, tiny.tokenizer.decode(std::span(drawn).first(static_cast<size_t>(length) - 1)));
}

TEST(Engine, TheContextEndsACompletionByLength) {
  const TinyModel tiny(1, {}, /*context=*/32);
  const auto results = generate(tiny, {}, {make_request(1, 30, 2, 64), make_request(2, 4, 1, 3)});
  EXPECT_THAT(results.at(1).completions[0].token_ids, SizeIs(2));
  EXPECT_EQ(results.at(1).completions[0].finish_reason, FinishReason::kLength);
  EXPECT_THAT(results.at(2).completions[0].token_ids, SizeIs(3));
  EXPECT_EQ(results.at(2).completions[0].finish_reason, FinishReason::kLength);
}

TEST(Engine, CancelHandsBackWhatWasDrawnAndSparesTheOthers) {
  const TinyModel tiny;
  const auto alone = generate(tiny, {}, {make_request(2, 9, 3, 20)});
  const Completion whole = generate(tiny, {}, {make_request(1, 20, 2, 30)}).at(1).completions[1];
  Engine engine(tiny.model, tiny.tokenizer, {.max_num_seqs = 4});
  engine.submit(make_request(1, 20, 2, 30));
  engine.submit(make_request(2, 9, 3, 20));
  engine.submit(make_request(3, 9, 3, 20));
  for (int i = 0; i < 5; ++i) engine.step();
  const std::vector<Completion> partial = engine.cancel(1);
  ASSERT_THAT(partial, SizeIs(2));
  EXPECT_EQ(partial[1].finish_reason, FinishReason::kAborted);
  EXPECT_THAT(partial[1].token_ids, ElementsAreArray(whole.token_ids.begin(), whole.token_ids.begin() + 5));
  EXPECT_EQ(partial[1].text, tiny.tokenizer.decode(partial[1].token_ids));
  EXPECT_THAT(engine.cancel(3), SizeIs(3));  // part of it has not begun
  EXPECT_THAT(engine.cancel(1), SizeIs(0));
  expect_same(alone, run_to_end(engine));
  EXPECT_EQ(engine.stats().num_used_blocks, 0);
}

TEST(Engine, TokensCarryTheVersionThatDrewThemAndTheCacheCanBeRecomputed) {
  TinyModel tiny;
  const TinyModel other(2);
  Engine engine(tiny.model, tiny.tokenizer, {});
  const GenerationRequest request = make_request(1, 20, 2, 8);
  engine.submit(request);
  for (int i = 0; i < 3; ++i) engine.step();
  tiny.model.load(other.parameters, 5);
  engine.recompute_cache();
  const auto results = run_to_end(engine);
  // The prompt, then the first with its 3 tokens, then what the second does not share of 20 + 3.
  EXPECT_EQ(engine.stats().num_prefill_tokens, 20 + 23 + (23 - 16));
  for (const Completion& completion : results.at(1).completions) {
    EXPECT_THAT(completion.policy_versions, ElementsAreArray({0, 0, 0, 5, 5, 5, 5, 5}));
    std::vector<int32_t> tokens = request.prompt_token_ids;
    tokens.insert(tokens.end(), completion.token_ids.begin(), completion.token_ids.end());
    const at::Tensor expected = at::log_softmax(other.full_logits(tokens), -1);
    for (size_t t = 3; t < 8; ++t)
      EXPECT_NEAR(completion.logprobs[t], expected[19 + static_cast<int64_t>(t)][completion.token_ids[t]].item<float>(),
                  1e-5);
  }
}

TEST(Engine, AnInterruptedCompletionGoesOnWithNewWeightsOnItsOldCache) {
  TinyModel tiny;
  const TinyModel other(2);
  const GenerationRequest request = make_request(1, 20, 2, 8);
  const auto before = generate(tiny, {}, {request}).at(1).completions;
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(request);
  for (int i = 0; i < 3; ++i) engine.step();
  tiny.model.load(other.parameters, 5);
  const auto results = run_to_end(engine);
  EXPECT_EQ(engine.stats().num_prefill_tokens, 20);  // nothing was computed again
  for (size_t c = 0; c < 2; ++c) {
    const Completion& completion = results.at(1).completions[c];
    EXPECT_THAT(completion.policy_versions, ElementsAreArray({0, 0, 0, 5, 5, 5, 5, 5}));
    EXPECT_THAT(completion.token_ids, SizeIs(8));
    EXPECT_TRUE(std::equal(before[c].token_ids.begin(), before[c].token_ids.begin() + 3, completion.token_ids.begin()));
    EXPECT_EQ(completion.mask, before[c].mask);
  }
}

TEST(Engine, EqualBeginningsOfPromptsAreComputedOnceAndOnlyForOneVersion) {
  TinyModel tiny;
  GenerationRequest first = make_request(1, 40, 2, 4), second = make_request(2, 52, 3, 12);
  std::copy_n(first.prompt_token_ids.begin(), 37, second.prompt_token_ids.begin());
  const auto alone = generate(tiny, {}, {second});
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(first);
  run_to_end(engine);
  engine.submit(second);
  expect_same(alone, run_to_end(engine));
  EXPECT_EQ(engine.stats().num_prefix_tokens, 32);
  EXPECT_EQ(engine.stats().num_prefill_tokens, 40 + 52 - 32);
  EXPECT_EQ(engine.stats().num_used_blocks, 0);

  const TinyModel other(2);
  tiny.model.load(other.parameters, 1);
  const auto changed = generate(tiny, {}, {second});
  engine.submit(second);
  expect_same(changed, run_to_end(engine));
  EXPECT_EQ(engine.stats().num_prefix_tokens, 32);
  engine.release();
  engine.submit(second);
  expect_same(changed, run_to_end(engine));
  EXPECT_EQ(engine.stats().num_prefix_tokens, 32);
}

TEST(Engine, RepeatsAfterItsMemoryWasReleased) {
  const TinyModel tiny;
  Engine engine(tiny.model, tiny.tokenizer, {});
  engine.submit(make_request(1, 20, 2, 8));
  const auto first = run_to_end(engine);
  engine.release();
  engine.submit(make_request(1, 20, 2, 8));
  expect_same(first, run_to_end(engine));
}

TEST(Engine, RefusesRequestsThatCannotBeServedAndServesTheOthers) {
  const TinyModel tiny;
  const auto alone = generate(tiny, {}, {make_request(2, 9, 3, 20)});
  const int64_t block_bytes = kv_cache_shape(tiny.config, at::kFloat, 16).bytes_per_block();
  Engine engine(tiny.model, tiny.tokenizer, {.kv_cache_memory_bytes = 6 * block_bytes});
  engine.submit(make_request(2, 9, 3, 20));
  const auto refusal = [&](const std::function<void(GenerationRequest&)>& change) {
    GenerationRequest request = make_request(7, 10, 1, 5);
    change(request);
    return message_of([&] { engine.submit(request); });
  };
  EXPECT_THAT(refusal([](auto& r) { r.prompt_token_ids.clear(); }),
              AllOf(HasSubstr("request 7"), HasSubstr("no tokens")));
  EXPECT_THAT(refusal([](auto& r) { r.prompt_token_ids.assign(128, 1); }),
              AllOf(HasSubstr("128 tokens"), HasSubstr("context is 128"), HasSubstr("Shorten")));
  EXPECT_THAT(refusal([](auto& r) { r.prompt_token_ids.assign(90, 1), r.sampling.max_new_tokens = 20; }),
              AllOf(HasSubstr("KV cache"), HasSubstr("rollout.kv_cache_memory")));
  EXPECT_THAT(refusal([](auto& r) { r.prompt_token_ids[3] = 260; }), AllOf(HasSubstr("260"), HasSubstr("259")));
  EXPECT_THAT(refusal([](auto& r) { r.num_completions = 0; }), HasSubstr("num_completions is 0"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.max_new_tokens = 0; }), HasSubstr("max_new_tokens is 0"));
  EXPECT_THAT(refusal([](auto& r) { r.sampling.top_p = 0; }), HasSubstr("top_p is 0"));
  expect_same(alone, run_to_end(engine));
}

TEST(Engine, RefusesACacheThatCannotBe) {
  const TinyModel tiny;
  EXPECT_THAT(message_of([&] { Engine(tiny.model, tiny.tokenizer, {.kv_cache_memory_bytes = 1000}); }),
              AllOf(HasSubstr("rollout.kv_cache_memory is 1000 bytes"), HasSubstr("8192 bytes")));
  EXPECT_THAT(message_of([&] {
                Engine(tiny.model, tiny.tokenizer,
                       {.max_num_seqs = int64_t{1} << 40, .kv_cache_memory_bytes = int64_t{1} << 52});
              }),
              AllOf(HasSubstr("MB of memory are free"), HasSubstr("Lower it")));
  EXPECT_THAT(message_of([&] { Engine(tiny.model, tiny.tokenizer, {.max_num_seqs = 0}); }),
              HasSubstr("rollout.max_num_seqs is 0"));
  EXPECT_THAT(message_of([&] { Engine(tiny.model, tiny.tokenizer, {.block_size = 20}); }),
              AllOf(HasSubstr("rollout.block_size is 20"), HasSubstr("multiple of 16")));
}

}  // namespace
}  // namespace temper
