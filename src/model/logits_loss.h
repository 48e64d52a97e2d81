// A loss on whole next-token distributions, token by token (distillation over the vocabulary), without ever holding
// [tokens x vocabulary]: a few rows of logits at a time, computed again in the backward pass. Called by the trainer,
// which passes the formula (algos/vocabulary_divergence.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <functional>

#include "model/linear.h"

namespace temper {

// student, teacher [r, V] f32 logits of r rows → [r], differentiable by the student's; rows do not depend on each
// other.
using LogitsLoss = std::function<at::Tensor(const at::Tensor& student, const at::Tensor& teacher)>;

// Hidden states after the final norm [n, hidden_size], of the same tokens; the teacher's width may differ. Returns [n]
// f32, differentiable by `hidden`; backward also adds to head.weight_grad. Either head may be shared among ranks, which
// then all call this.
at::Tensor logits_loss(const at::Tensor& hidden, const LinearWeights& head, const at::Tensor& teacher_hidden,
                       const LinearWeights& teacher_head, LogitsLoss loss);

}  // namespace temper
