#include "core/eval_metrics.h"

#include <limits>

#include "core/error.h"

namespace temper {
namespace {

double mean(double sum, int64_t count) {
  return count > 0 ? sum / static_cast<double>(count) : std::numeric_limits<double>::quiet_NaN();
}

}  // namespace

double pass_at_k(int64_t n, int64_t c, int64_t k) {
  TEMPER_CHECK(c >= 0 && c <= n && k >= 1 && k <= n, "n = {}, c = {}, k = {}", n, c, k);
  if (n - c < k) return 1.0;
  // C(n - c, k) / C(n, k) as a product of ratios: no factorial overflows
  double all_wrong = 1.0;
  for (int64_t i = n - c + 1; i <= n; ++i) all_wrong *= 1.0 - static_cast<double>(k) / static_cast<double>(i);
  return 1.0 - all_wrong;
}

EvalMetrics eval_metrics(const std::vector<std::vector<Verdict>>& problems, int64_t k) {
  TEMPER_CHECK(k >= 1, "k = {}", k);
  EvalMetrics metrics;
  double first_correct = 0, sum_average = 0, sum_pass = 0;
  int64_t num_averaged = 0, num_passed = 0;
  for (const auto& verdicts : problems) {
    int64_t n = 0, c = 0;
    for (const Verdict verdict : verdicts) {
      n += verdict != Verdict::kFailed;
      c += verdict == Verdict::kCorrect;
    }
    metrics.num_failed += static_cast<int64_t>(verdicts.size()) - n;
    if (!verdicts.empty() && verdicts[0] != Verdict::kFailed) {
      ++metrics.num_problems;
      first_correct += verdicts[0] == Verdict::kCorrect;
    }
    if (n > 0) {
      ++num_averaged;
      sum_average += static_cast<double>(c) / static_cast<double>(n);
    }
    if (n >= k) {
      ++num_passed;
      sum_pass += pass_at_k(n, c, k);
    }
  }
  metrics.accuracy = mean(first_correct, metrics.num_problems);
  metrics.avg_at_k = mean(sum_average, num_averaged);
  metrics.pass_at_k = mean(sum_pass, num_passed);
  return metrics;
}

}  // namespace temper
