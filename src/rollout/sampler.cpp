#include "rollout/sampler.h"

#include <ATen/Parallel.h>

#include <cmath>

#include "core/error.h"
#include "model/vocab_kernels.h"

namespace temper {

void check_sampling(const SamplingParams& sampling, const std::string& where) {
  if (!(sampling.temperature >= 0) || !std::isfinite(sampling.temperature))
    throw ConfigError("{}: temperature is {}: give a number of at least 0 (0 is greedy).", where, sampling.temperature);
  // Logits are divided by it: below this the quotients of ordinary logits overflow f32.
  if (sampling.temperature > 0 && sampling.temperature < 1e-4)
    throw ConfigError("{}: temperature is {}: give 0 (greedy) or at least 0.0001.", where, sampling.temperature);
  if (sampling.top_k < 0) throw ConfigError("{}: top_k is {}: give 0 (all tokens) or more.", where, sampling.top_k);
  if (!(sampling.top_p > 0 && sampling.top_p <= 1))
    throw ConfigError("{}: top_p is {}: give a number above 0 and up to 1 (1 keeps all tokens).", where,
                      sampling.top_p);
  if (!(sampling.min_p >= 0 && sampling.min_p <= 1))
    throw ConfigError("{}: min_p is {}: give a number from 0 (keeps all tokens) to 1.", where, sampling.min_p);
  if (sampling.max_new_tokens < 1)
    throw ConfigError("{}: max_new_tokens is {}: give at least 1.", where, sampling.max_new_tokens);
  for (const std::string& stop : sampling.stop)
    if (stop.empty())
      throw ConfigError("{}: a stop string is empty: it would end every completion. Leave it out.", where);
}

std::vector<DrawnToken> draw_tokens(const at::Tensor& logits, const std::vector<Draw>& draws) {
  TEMPER_CHECK(logits.dim() == 2 && logits.scalar_type() == at::kFloat && logits.is_contiguous() && logits.is_cpu(),
               "logits must be [n, V] f32 on the CPU");
  const int64_t vocab = logits.size(1);
  const float* data = logits.const_data_ptr<float>();
  std::vector<DrawnToken> tokens(draws.size());
  at::parallel_for(0, static_cast<int64_t>(draws.size()), 1, [&](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Draw& draw = draws[static_cast<size_t>(i)];
      const SamplingParams& sampling = *draw.sampling;
      const TokenFilter filter{.top_k = sampling.top_k, .top_p = sampling.top_p, .min_p = sampling.min_p};
      const TokenDraw drawn =
          draw_token(data + draw.row * vocab, vocab, sampling.temperature, filter, uniform_draw(draw.key));
      DrawnToken& token = tokens[static_cast<size_t>(i)];
      token.token_id = static_cast<int32_t>(drawn.token);
      token.logprob = drawn.logit - drawn.logsumexp;
      token.behavior_logprob =
          sampling.temperature == 0
              ? token.logprob
              : static_cast<float>(drawn.logit * (1 / sampling.temperature)) - drawn.scaled_logsumexp;
    }
  });
  for (size_t i = 0; i < tokens.size(); ++i)
    if (!std::isfinite(tokens[i].logprob))
      throw NumericsError(
          "prompt {}, completion {}, token {}: the model's logits are not finite, so no token can be drawn. "
          "Check the weights (a diverged run?) or try f32.",
          draws[i].key.serial, draws[i].key.completion, draws[i].key.position);
  return tokens;
}

}  // namespace temper
