// Generation on a GPU against the CPU's.
#include "tests/gpu/gpu_test_support.h"
#include "tests/rollout/tiny_model.h"

namespace temper {
namespace {

using EngineOnGpu = OnGpu;

std::map<int64_t, GenerationResult> generate(const TinyModel& tiny, const Transformer& model, double temperature,
                                             EngineOptions options = {}) {
  Engine engine(model, tiny.tokenizer, options);
  for (int64_t id = 0; id < 6; ++id) {
    GenerationRequest request;
    request.id = request.serial = id;
    request.prompt_token_ids = random_prompt(static_cast<uint64_t>(id), 5 + 7 * id);
    request.num_completions = 3;
    request.sampling.temperature = temperature;
    request.sampling.max_new_tokens = 20;
    engine.submit(std::move(request));
  }
  return run_to_end(engine);
}

class GpuTwin {
 public:
  GpuTwin(const TinyModel& tiny, at::ScalarType compute, at::Device device)
      : model(tiny.config, compute, false, WeightFormat::kCompute, device) {
    model.load(tiny.parameters, 0);
  }
  Transformer model;
};

TEST_F(EngineOnGpu, DrawsTheCpusTokensInF32) {
  const TinyModel tiny;
  const GpuTwin twin(tiny, at::kFloat, gpu());
  for (const double temperature : {0.0, 1.0}) {
    const auto here = generate(tiny, tiny.model, temperature), there = generate(tiny, twin.model, temperature);
    for (const auto& [id, result] : here)
      for (size_t i = 0; i < result.completions.size(); ++i) {
        const Completion &wanted = result.completions[i], &got = there.at(id).completions[i];
        ASSERT_EQ(got.token_ids, wanted.token_ids) << id << " at temperature " << temperature;
        for (size_t t = 0; t < wanted.logprobs.size(); ++t) EXPECT_NEAR(got.logprobs[t], wanted.logprobs[t], 1e-4);
      }
  }
}

// Flash kernels over gathered blocks: the log-probabilities are those of one pass over the whole sequence.
TEST_F(EngineOnGpu, Bf16LogprobsAreThoseOfAFullPass) {
  const TinyModel tiny;
  const GpuTwin twin(tiny, at::kBFloat16, gpu());
  const at::NoGradGuard no_grad;
  for (const auto& [id, result] : generate(tiny, twin.model, 1.0, {.max_num_seqs = 7, .max_tokens_per_step = 16}))
    for (const Completion& completion : result.completions) {
      std::vector<int32_t> ids = random_prompt(static_cast<uint64_t>(id), 5 + 7 * id);
      const auto prompt = static_cast<int64_t>(ids.size());
      ids.insert(ids.end(), completion.token_ids.begin(), completion.token_ids.end());
      const auto length = static_cast<int64_t>(ids.size());
      const at::Tensor hidden =
          twin.model.hidden_states(at::tensor(std::vector<int64_t>(ids.begin(), ids.end()), at::kLong),
                                   at::arange(length, at::kLong), [&](int64_t, const at::Tensor& qkv) {
                                     return packed_attention_qkv(qkv, tiny.config.num_heads, tiny.config.num_kv_heads,
                                                                 {{0, length, 0, 0}}, twin.model.attention_scale());
                                   });
      const at::Tensor logprobs = twin.model.logits(hidden).log_softmax(-1).cpu();
      for (size_t t = 0; t < completion.token_ids.size(); ++t)
        EXPECT_NEAR(completion.logprobs[t],
                    logprobs[prompt - 1 + static_cast<int64_t>(t)][completion.token_ids[t]].item<float>(), 0.1)
            << id << ", token " << t;
    }
}

TEST_F(EngineOnGpu, PreemptionAndReleaseChangeNothing) {
  const TinyModel tiny;
  const GpuTwin twin(tiny, at::kFloat, gpu());
  const int64_t block_bytes = kv_cache_shape(tiny.config, at::kFloat, 16, gpu()).bytes_per_block();
  const auto roomy = generate(tiny, twin.model, 1.0),
             tight = generate(tiny, twin.model, 1.0, {.kv_cache_memory_bytes = 12 * block_bytes});
  for (const auto& [id, result] : roomy)
    for (size_t i = 0; i < result.completions.size(); ++i)
      EXPECT_EQ(tight.at(id).completions[i].token_ids, result.completions[i].token_ids) << id;
}

}  // namespace
}  // namespace temper
