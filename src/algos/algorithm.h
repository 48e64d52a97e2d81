// The seam between training and the mathematics of losses. A step is:
//   algorithm->advantages(batch)                      on the whole batch's small arrays, the same on every rank
//   mini = batch.select(…); counts = global_counts(mini)
//   algorithm->prepare(mini, logprobs, rng)           where needs_prepare(): a forward pass without gradient came first
//   for each micro-batch: loss(output, mini.select(…), counts).loss.backward()
// The gradients of all micro-batches and ranks are summed, not averaged. Holds whole completions in every micro-batch
// (whole groups for dpo, ipo and reward_model). Thread-safe but for set_kl_coef.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <utility>
#include <vector>

#include "algos/batch.h"
#include "algos/metric_sums.h"
#include "algos/settings.h"
#include "core/rng.h"

namespace temper {

struct EstimatorRow;   // algos/advantage.h
struct PolicyLossRow;  // algos/policy_loss.h

struct AdvantageReport {
  std::vector<std::pair<std::string, double>> metrics;  // of the whole batch, final
  std::optional<double> kl;  // kl_placement reward: the mean over completions of their mean k
};

struct LossResult {
  at::Tensor loss;     // scalar, differentiable: this micro-batch's part of the mini-batch's loss
  MetricSums metrics;  // constants that add up over micro-batches; names as in docs/metrics.md
};

// Entries of LossResult::metrics that are not for the log.
inline constexpr char kKlCurrentMetric[] = "kl_current";  // kl_placement loss: mean over completions of their mean k
inline constexpr char kKlTermMetric[] = "kl_term";        // aggregated k
inline constexpr char kDistillTermMetric[] = "distill_term";  // aggregated vocabulary divergence

class Algorithm {
 public:
  virtual ~Algorithm() = default;
  virtual const AlgoSection& settings() const = 0;

  // Fills stays, counted, kept, advantages, returns and is_weights. The whole batch of the step, on the CPU.
  virtual AdvantageReport advantages(LossBatch& batch) const = 0;

  // How many groups filter_groups takes out, for the caller to draw others in their place.
  virtual int64_t num_filtered(const LossBatch& batch) const = 0;

  // Losses that select tokens over the whole mini-batch (clip_cov, kl_cov) fill `selected`.
  virtual bool needs_prepare() const = 0;
  // policy_logprobs: [N] of the mini-batch, no gradient. clip_cov draws with rng; null takes the largest covariances.
  virtual void prepare(LossBatch& mini_batch, const at::Tensor& policy_logprobs, SplitMix64* rng) const = 0;

  virtual LossResult loss(const PolicyOutput& output, const LossBatch& micro_batch,
                          const GlobalCounts& counts) const = 0;

  // The KL coefficient in use: state that a checkpoint keeps. It starts at settings().kl_coef.
  virtual double kl_coef() const = 0;
  virtual void set_kl_coef(double value) = 0;
};

// What the KL controller compares with its target (next_kl_coef in algos/kl.h), of the placement used; none without
// ref_logprobs.
std::optional<double> current_kl(const AdvantageReport& report, const MetricSums& metrics);

std::unique_ptr<Algorithm> make_algorithm(const AlgoSection& settings, const AlgoContext& context);

// With the given rows in place of the tables': a loss or an estimator that is no word of the configuration (yet). What
// the batch must bring is still decided by settings. docs/adding_an_algorithm.md.
std::unique_ptr<Algorithm> make_algorithm(const AlgoSection& settings, const AlgoContext& context,
                                          const EstimatorRow& estimator, const PolicyLossRow& loss);

}  // namespace temper
