// What run.deterministic promises of generation: a completion's bits depend on the weights, its prompt and its draws
// alone, and the trainer's forward gives its log-probabilities bit for bit.
#include <ATen/Parallel.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "model/matmul.h"
#include "model/token_logprobs.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

// Odd sizes: heads that do not fill a tile, three blocks of vocabulary of which the last is short.
struct OddModel {
  explicit OddModel(at::ScalarType compute)
      : tokenizer(Tokenizer::bytes()), config(make_config()), parameters(config), model(config, compute, false) {
    initialize_parameters(config, 3, parameters);
    for (const ParameterSpec& spec : parameters.specs())
      if (spec.shape.size() == 2) parameters[spec.name].mul_(6);
    model.load(parameters, 0);
  }
  static ModelConfig make_config() {
    ModelInit init;
    init.family = "qwen3";
    init.hidden_size = 96;
    init.intermediate_size = 192;
    init.num_layers = 3;
    init.num_heads = 6;
    init.num_kv_heads = 2;
    init.head_dim = 24;
    init.vocab_size = 4999;
    init.max_position_embeddings = 256;
    TokenizerFacts facts;
    facts.vocab_size = 260;
    return new_model_config(init, facts);
  }
  Tokenizer tokenizer;
  ModelConfig config;
  FlatParameters parameters;
  Transformer model;
};

GenerationRequest varied_request(int64_t id, int64_t prompt_length, int num_completions, int32_t max_new_tokens) {
  GenerationRequest request{.id = id,
                            .prompt_token_ids = random_prompt(static_cast<uint64_t>(id), prompt_length),
                            .num_completions = num_completions,
                            .serial = id};
  request.sampling.temperature = id % 2 == 0 ? 1.0 : 0.7;
  request.sampling.top_p = id % 3 == 0 ? 0.9 : 1.0;
  request.sampling.max_new_tokens = max_new_tokens;
  request.sampling.ignore_eos = true;
  return request;
}

const std::vector<GenerationRequest>& requests() {
  static const std::vector<GenerationRequest> all = {varied_request(0, 33, 4, 70), varied_request(1, 90, 3, 40),
                                                     varied_request(2, 1, 9, 30), varied_request(3, 64, 2, 66)};
  return all;
}

std::map<int64_t, GenerationResult> generate(const OddModel& odd, const EngineOptions& options,
                                             const std::vector<GenerationRequest>& wanted, int threads,
                                             int64_t* num_preemptions = nullptr) {
  const int before = at::get_num_threads();
  at::set_num_threads(threads);
  Engine engine(odd.model, odd.tokenizer, options);
  for (const GenerationRequest& request : wanted) engine.submit(request);
  auto results = run_to_end(engine);
  if (num_preemptions != nullptr) *num_preemptions = engine.stats().num_preemptions;
  at::set_num_threads(before);
  return results;
}

void expect_same_bits(const std::map<int64_t, GenerationResult>& part, const std::map<int64_t, GenerationResult>& all,
                      const char* what) {
  for (const auto& [id, result] : part)
    for (size_t i = 0; i < result.completions.size(); ++i) {
      const Completion &a = result.completions[i], &b = all.at(id).completions[i];
      EXPECT_EQ(a.token_ids, b.token_ids) << what << ": request " << id << ", completion " << i;
      EXPECT_EQ(a.logprobs, b.logprobs) << what;
      EXPECT_EQ(a.behavior_logprobs, b.behavior_logprobs) << what;
    }
}

class Determinism : public testing::TestWithParam<at::ScalarType> {
 protected:
  void SetUp() override {
    if (GetParam() == at::kBFloat16 && !cpu_has_bf16()) GTEST_SKIP() << "no bf16 products on this CPU";
  }
};

TEST_P(Determinism, BitsDoNotDependOnBatchMatesChunksPreemptionNorThreads) {
  const OddModel odd(GetParam());
  const auto together = generate(odd, {}, requests(), 2);
  for (const int threads : {1, 3}) expect_same_bits(generate(odd, {}, requests(), threads), together, "threads");
  for (const GenerationRequest& request : requests())
    expect_same_bits(generate(odd, {}, {request}, 2), together, "alone");
  std::vector<GenerationRequest> reversed(requests().rbegin(), requests().rend());
  expect_same_bits(generate(odd, {}, reversed, 2), together, "order");
  expect_same_bits(generate(odd, {.max_num_seqs = 3, .max_tokens_per_step = 19}, requests(), 2), together, "chunks");
  expect_same_bits(generate(odd, {.block_size = 48, .enable_prefix_sharing = false}, requests(), 3), together,
                   "blocks");
  const int64_t block_bytes = kv_cache_shape(odd.config, GetParam(), 16).bytes_per_block();
  int64_t num_preemptions = 0;
  expect_same_bits(generate(odd, {.kv_cache_memory_bytes = 14 * block_bytes}, requests(), 2, &num_preemptions),
                   together, "preemption");
  EXPECT_GT(num_preemptions, 0);
}

// What one engine hands back unfinished, another goes on with.
TEST_P(Determinism, AnInterruptedGroupGoesOnElsewhereWithTheSameBits) {
  const OddModel odd(GetParam());
  const auto whole = generate(odd, {}, requests(), 2);
  for (const int num_steps : {1, 7, 35, 50}) {
    Engine first(odd.model, odd.tokenizer);
    for (const GenerationRequest& request : requests()) first.submit(request);
    auto results = std::map<int64_t, GenerationResult>();
    for (int step = 0; step < num_steps; ++step)
      for (GenerationResult& result : first.step()) results[result.id] = std::move(result);
    std::vector<GenerationRequest> rest;
    for (GenerationRequest request : requests()) {
      request.begun = first.cancel(request.id);
      if (!request.begun.empty()) rest.push_back(std::move(request));
    }
    ASSERT_FALSE(rest.empty());
    EXPECT_TRUE(first.idle());
    for (auto& [id, result] : generate(odd, {.max_num_seqs = 5}, rest, 2)) results[id] = std::move(result);
    EXPECT_EQ(results.size(), requests().size());
    expect_same_bits(results, whole, "interrupted");
  }
}

// A group as the trainer packs it: the prompt once, each completion behind it.
TEST_P(Determinism, TheTrainersForwardGivesTheEnginesLogProbabilities) {
  const OddModel odd(GetParam());
  for (const auto& [id, result] : generate(odd, {}, requests(), 2)) {
    const GenerationRequest& request = requests()[static_cast<size_t>(id)];
    std::vector<int64_t> ids(request.prompt_token_ids.begin(), request.prompt_token_ids.end());
    const auto prompt = static_cast<int64_t>(ids.size());
    std::vector<int64_t> positions, rows, targets;
    for (int64_t i = 0; i < prompt; ++i) positions.push_back(i);
    std::vector<AttentionSegment> segments = {{.begin = 0, .end = prompt}};
    std::vector<float> plain, behavior;
    for (const Completion& completion : result.completions) {
      const auto begin = static_cast<int64_t>(ids.size());
      for (size_t t = 0; t < completion.token_ids.size(); ++t) {
        rows.push_back(t == 0 ? prompt - 1 : begin + static_cast<int64_t>(t) - 1);
        targets.push_back(completion.token_ids[t]);
        ids.push_back(completion.token_ids[t]);
        positions.push_back(prompt + static_cast<int64_t>(t));
      }
      segments.push_back({begin, static_cast<int64_t>(ids.size()), 0, prompt});
      plain.insert(plain.end(), completion.logprobs.begin(), completion.logprobs.end());
      behavior.insert(behavior.end(), completion.behavior_logprobs.begin(), completion.behavior_logprobs.end());
    }
    at::NoGradGuard no_grad;
    const at::Tensor hidden = odd.model.hidden_states(
        at::tensor(ids, at::kLong), at::tensor(positions, at::kLong), [&](int64_t, const at::Tensor& qkv) {
          return packed_attention_qkv(qkv, odd.config.num_heads, odd.config.num_kv_heads, segments,
                                      odd.model.attention_scale());
        });
    const at::Tensor used = hidden.index_select(0, at::tensor(rows, at::kLong));
    const auto logprobs = [&](double temperature) {
      const at::Tensor values =
          token_logprobs(used, at::tensor(targets, at::kLong), odd.model.head(), temperature).logprobs.contiguous();
      return std::vector<float>(values.const_data_ptr<float>(), values.const_data_ptr<float>() + values.numel());
    };
    EXPECT_EQ(logprobs(1.0), plain);
    EXPECT_EQ(logprobs(request.sampling.temperature), behavior);
  }
}

INSTANTIATE_TEST_SUITE_P(Dtypes, Determinism, testing::Values(at::kFloat, at::kBFloat16),
                         [](const auto& info) { return info.param == at::kFloat ? "f32" : "bf16"; });

}  // namespace
}  // namespace temper
