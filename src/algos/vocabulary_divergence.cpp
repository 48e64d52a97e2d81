#include "algos/vocabulary_divergence.h"

#include <ATen/ATen.h>

#include <cmath>

#include "core/error.h"

namespace temper {
namespace {

// sum_v p (log p - log q); log_softmax is finite, so a p that underflows adds 0.
at::Tensor kl(const at::Tensor& log_p, const at::Tensor& log_q) { return (log_p.exp() * (log_p - log_q)).sum(-1); }

}  // namespace

// S, T: softmax(logits / temperature) of student and teacher. forward_kl: KL(T || S); reverse_kl: KL(S || T); jsd:
// beta KL(T || M) + (1 - beta) KL(S || M), M = (1 - beta) S + beta T: the generalised Jensen-Shannon divergence of GKD,
// Agarwal et al. 2023, https://arxiv.org/abs/2306.13649, as TRL's GKDTrainer. distill_top_k: the forward sum over the
// teacher's most likely tokens alone, nothing renormalised; where it is negative it tells nothing and counts 0.
at::Tensor vocabulary_divergence(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                                 const AlgoSection& settings) {
  TEMPER_CHECK(student_logits.dim() == 2 && student_logits.sizes() == teacher_logits.sizes(),
               "student and teacher logits must both be [n, V]");
  const at::Tensor log_s = at::log_softmax(student_logits / settings.distill_temperature, -1);
  const at::Tensor log_t = at::log_softmax(teacher_logits / settings.distill_temperature, -1).detach();
  switch (settings.distill_loss) {
    case DistillLoss::kForwardKl: {
      const int64_t top_k = settings.distill_top_k;
      if (top_k == 0 || top_k >= log_t.size(-1)) return kl(log_t, log_s);
      const at::Tensor top = std::get<1>(log_t.topk(top_k, -1));
      return kl(log_t.gather(-1, top), log_s.gather(-1, top)).clamp_min(0);
    }
    case DistillLoss::kReverseKl:
      return kl(log_s, log_t);
    case DistillLoss::kJsd: {
      const double beta = settings.distill_beta;
      // The mixture is then one of the two, and the other's divergence has the weight 0.
      if (beta == 0 || beta == 1) return at::zeros_like(log_s.select(-1, 0));
      const at::Tensor log_m = at::logaddexp(log_s + std::log1p(-beta), log_t + std::log(beta));
      return beta * kl(log_t, log_m) + (1 - beta) * kl(log_s, log_m);
    }
    case DistillLoss::kNone:
      break;
  }
  throw InvariantError("vocabulary_divergence without a distill_loss");
}

}  // namespace temper
