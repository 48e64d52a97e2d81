// What Engine::step_tokens() tells while completions grow is what their results hold at the end.
#include <gtest/gtest.h>

#include <map>

#include "rollout/text_stream.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

TEST(StepTokens, TogetherAreTheCompletions) {
  // Every fifth id ends a completion.
  std::vector<int64_t> ends;
  for (int64_t id = 0; id < 255; id += 5) ends.push_back(id);
  const TinyModel tiny(3, ends);
  Engine engine(tiny.model, tiny.tokenizer, {.max_num_seqs = 4, .kv_cache_memory_bytes = 64 << 10});
  std::map<std::pair<int64_t, int32_t>, Completion> grown;
  std::map<std::pair<int64_t, int32_t>, TextStream> texts;
  for (int64_t id = 0; id < 4; ++id) {
    GenerationRequest request;
    request.id = id;
    request.prompt_token_ids = random_prompt(static_cast<uint64_t>(id), 5 + id);
    request.num_completions = 3;
    request.sampling.max_new_tokens = 12;
    request.sampling.seed = 7;
    request.sampling.stop = {"a", "\xC3"};
    request.sampling.ignore_eos = id == 0;
    for (int32_t i = 0; i < 3; ++i) texts.emplace(std::pair(id, i), TextStream(request.sampling.stop));
    engine.submit(std::move(request));
  }
  int num_compared = 0, num_ended = 0;
  while (!engine.idle()) {
    const std::vector<GenerationResult> results = engine.step();
    for (const StepToken& token : engine.step_tokens()) {
      Completion& completion = grown[{token.id, token.completion}];
      completion.token_ids.push_back(token.token_id);
      completion.logprobs.push_back(token.logprob);
      TextStream& text = texts.at({token.id, token.completion});
      if (token.is_text) completion.text += text.append(tiny.tokenizer.token_bytes(token.token_id));
      if (!token.finished) continue;
      completion.text += text.finish();
      completion.finish_reason = token.finish_reason;
    }
    for (const GenerationResult& result : results)
      for (size_t i = 0; i < result.completions.size(); ++i) {
        const Completion& expected = result.completions[i];
        const Completion& got = grown.at({result.id, static_cast<int32_t>(i)});
        EXPECT_EQ(got.token_ids, expected.token_ids);
        EXPECT_EQ(got.logprobs, expected.logprobs);
        EXPECT_EQ(got.text, expected.text);
        EXPECT_EQ(got.finish_reason, expected.finish_reason);
        ++num_compared;
        num_ended += expected.finish_reason == FinishReason::kStop;
      }
  }
  EXPECT_EQ(num_compared, 12);
  EXPECT_GT(num_ended, 0);
  EXPECT_TRUE(engine.step().empty());
  EXPECT_TRUE(engine.step_tokens().empty());
}

}  // namespace
}  // namespace temper
