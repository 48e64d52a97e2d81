#include "algos/value_loss.h"

#include <ATen/ATen.h>

namespace temper {

ValueLoss value_loss(const at::Tensor& values, const at::Tensor& old_values, const at::Tensor& returns, double clip) {
  const at::Tensor plain = (values - returns).square();
  if (clip == 0) return {plain * 0.5, at::zeros_like(plain, at::kBool)};
  const at::Tensor bounded = (at::minimum(at::maximum(values.detach(), old_values - clip), old_values + clip));
  // The clipped value is a constant where a bound acts and the value itself where none does.
  const at::Tensor clipped_values = at::where(bounded == values, values, bounded);
  const at::Tensor square = (clipped_values - returns).square();
  const at::Tensor larger = square > plain;
  return {at::where(larger, square, plain) * 0.5, larger};
}

}  // namespace temper
