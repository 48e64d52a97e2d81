#include "algos/kl.h"

#include <ATen/ATen.h>

#include <algorithm>

#include "core/error.h"

namespace temper {

// Schulman 2020, http://joschu.net/blog/kl-approx.html. k3 is unclamped, as in TRL; clamp = true bounds it as verl
// does: min(e^x - x - 1, 10) with x = clamp(-d, -20, 20). The suffix + (verl) keeps a form's value and takes k2's
// derivative, whose expectation is the gradient of the KL (Tang, Munos 2025, https://arxiv.org/abs/2506.09477).
at::Tensor kl_estimate(const at::Tensor& d, KlEstimatorKind estimator, bool clamp) {
  const auto with_gradient_of_k2 = [&](const at::Tensor& k) {
    const at::Tensor k2 = d.square() * 0.5;
    return k.detach() + (k2 - k2.detach());
  };
  switch (estimator) {
    case KlEstimatorKind::kK1:
      return d;
    case KlEstimatorKind::kAbs:
      return d.abs();
    case KlEstimatorKind::kK2:
      return d.square() * 0.5;
    case KlEstimatorKind::kK3: {
      if (!clamp) return (-d).expm1() + d;
      const at::Tensor x = (-d).clamp(-20, 20);
      return (x.expm1() - x).clamp_max(10);
    }
    case KlEstimatorKind::kK1Plus:
      return with_gradient_of_k2(kl_estimate(d, KlEstimatorKind::kK1, clamp));
    case KlEstimatorKind::kAbsPlus:
      return with_gradient_of_k2(kl_estimate(d, KlEstimatorKind::kAbs, clamp));
    case KlEstimatorKind::kK3Plus:
      return with_gradient_of_k2(kl_estimate(d, KlEstimatorKind::kK3, clamp));
  }
  throw InvariantError("unknown kl_estimator");
}

// Ziegler et al. 2019, https://arxiv.org/abs/1909.08593, section 2.2, as verl's AdaptiveKLController.
double next_kl_coef(const AlgoSection& settings, double kl_coef, double current, double num_completions) {
  if (settings.kl_ctrl.type == KlCtrlType::kFixed) return kl_coef;
  const double error = std::clamp(current / settings.kl_ctrl.target - 1, -0.2, 0.2);
  return kl_coef * (1 + error * num_completions / settings.kl_ctrl.horizon);
}

}  // namespace temper
