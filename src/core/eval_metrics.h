// Accuracy, avg@k and pass@k of an evaluation, from one verdict a completion. Pure functions, for the trainer and
// `temper eval`. A completion whose scoring failed is left out and counted, never taken for wrong.
#pragma once
#include <cstdint>
#include <vector>

namespace temper {

enum class Verdict : uint8_t { kWrong, kCorrect, kFailed };

struct EvalMetrics {
  double accuracy = 0;       // share of problems whose first completion is correct
  double avg_at_k = 0;       // share of correct completions, averaged over problems
  double pass_at_k = 0;      // chance that at least one of k completions is correct, unbiased
  int64_t num_problems = 0;  // that count in accuracy: those whose first completion was scored
  int64_t num_failed = 0;    // completions that could not be scored
};

// 1 - C(n - c, k) / C(n, k): the unbiased estimate from n completions of which c are correct (Chen et al. 2021,
// arXiv:2107.03374). REQUIRES: 0 <= c <= n, 1 <= k <= n.
double pass_at_k(int64_t n, int64_t c, int64_t k);

// One row a problem, one verdict a completion, in the order of drawing. Problems with fewer than k scored completions
// are left out of pass@k, those with none out of avg@k. A figure over no problem at all is NaN.
EvalMetrics eval_metrics(const std::vector<std::vector<Verdict>>& problems, int64_t k);

}  // namespace temper
