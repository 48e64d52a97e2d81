// The critic's loss. Schulman et al. 2017, https://arxiv.org/abs/1707.06347, with the clipping of PPO's implementation.
#pragma once
#include <ATen/core/Tensor.h>

namespace temper {

struct ValueLoss {
  at::Tensor loss;     // [n] differentiable by values
  at::Tensor clipped;  // [n] bool: the clipped square is the larger
};

// l = max((V - R)^2, (clamp(V, V_old - clip, V_old + clip) - R)^2) / 2; clip 0 = off. All [n].
ValueLoss value_loss(const at::Tensor& values, const at::Tensor& old_values, const at::Tensor& returns, double clip);

}  // namespace temper
