// Estimators of KL(policy || ref) from the two log-probabilities of a token the policy drew, and the controller of
// their coefficient.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/settings.h"

namespace temper {

// d = policy - ref, any shape; differentiable. k1 = d, abs = |d|, k2 = d^2/2, k3 = e^-d + d - 1 (bounded if clamp).
at::Tensor kl_estimate(const at::Tensor& d, KlEstimatorKind estimator, bool clamp);

// The next coefficient, given the current mean KL over completions and their number.
double next_kl_coef(const AlgoSection& settings, double kl_coef, double current, double num_completions);

}  // namespace temper
