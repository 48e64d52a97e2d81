// Distillation over the vocabulary: the divergence of a student's next-token distribution from a teacher's, a token.
// Callable on chunks of tokens, so that [tokens x vocabulary] need never be stored whole.
#pragma once
#include <ATen/core/Tensor.h>

#include "algos/settings.h"

namespace temper {

// student_logits, teacher_logits: [n, V]; differentiable by the student's. Returns [n].
// REQUIRES: distill_loss is not none.
at::Tensor vocabulary_divergence(const at::Tensor& student_logits, const at::Tensor& teacher_logits,
                                 const AlgoSection& settings);

}  // namespace temper
