// Collects the metrics of one micro-batch on its device and brings them over in one copy at the end. Used by
// Algorithm::loss alone.
#pragma once
#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

#include "algos/algorithm.h"
#include "algos/policy_loss.h"
#include "algos/preference.h"

namespace temper {

class LossMetrics {
 public:
  explicit LossMetrics(const LossBatch& batch) : batch_(batch) {}

  void add_sum(std::string_view name, const at::Tensor& value);
  void add_internal(std::string_view name, const at::Tensor& value);  // a sum that is not for the log
  void add_mean(std::string_view name, const at::Tensor& sum, const at::Tensor& weight);
  // Sum of x over the mask by the number of its tokens.
  void add_token_mean(std::string_view name, const at::Tensor& x, const at::Tensor& mask);
  void add_extreme(std::string_view name, Reduction reduction, const at::Tensor& x, const at::Tensor& mask);

  // clip_ratio/* and ppo_kl.
  void add_ratio_loss(const TokenLoss& loss, const TokenLossInput& input, bool selects);
  // sampling/*: how far the sampler is from the proximal policy, and what was done about it.
  void add_mismatch(const at::Tensor& old_logprobs, const at::Tensor& is_weights, const Segments& segments,
                    const AlgoSection& settings);
  // rewards/chosen, …
  void add_pairs(const PairLoss& pairs);

  MetricSums finish() const;

 private:
  struct Pending {
    std::string name;
    Reduction reduction;
    at::Tensor value, weight;  // scalars
    bool logged = true;
  };
  const LossBatch& batch_;
  std::vector<Pending> pending_;
};

}  // namespace temper
