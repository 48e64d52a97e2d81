#include "algos/aggregate.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"

namespace temper {

// token-mean: DAPO, https://arxiv.org/abs/2503.14476; seq-mean-token-mean: GRPO, https://arxiv.org/abs/2402.03300;
// seq-mean-token-sum-norm: Dr. GRPO, https://arxiv.org/abs/2503.20783. As verl's agg_loss with global denominators.
at::Tensor aggregation_weights(const at::Tensor& mask, const at::Tensor& denominator, double num_tokens,
                               const Segments& segments, const GlobalCounts& counts, const AlgoSection& settings,
                               const AlgoContext& context, at::ScalarType dtype) {
  const at::Tensor ones = mask.to(dtype);
  const double num_completions = std::max(1.0, counts.num_completions);
  switch (settings.loss_agg_mode) {
    case LossAggMode::kTokenMean:
      return ones / std::max(1.0, num_tokens);
    case LossAggMode::kTokenSum:
      return ones;
    case LossAggMode::kSeqMeanTokenSum:
      return ones / num_completions;
    case LossAggMode::kSeqMeanTokenSumNorm:
      TEMPER_CHECK(context.max_completion_length > 0, "seq-mean-token-sum-norm without max_completion_length");
      return ones / (num_completions * static_cast<double>(context.max_completion_length));
    case LossAggMode::kSeqMeanTokenMean:
      return ones / segments.spread(segments.sum(denominator.to(dtype)).clamp_min(1)) / num_completions;
  }
  throw InvariantError("unknown loss_agg_mode");
}

}  // namespace temper
