// The fused pieces of a layer in plain ATen; autograd differentiates them.
#include <ATen/ATen.h>

#include "model/elementwise.h"

namespace temper::reference {

namespace {
at::Tensor widened(const at::Tensor& x) { return x.scalar_type() == at::kDouble ? x : x.to(at::kFloat); }

at::Tensor rotated(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  const int64_t half = x.size(-1) / 2;
  const at::Tensor at_positions = positions.to(cos.device());
  const at::Tensor c = cos.index_select(0, at_positions).unsqueeze(1),
                   s = sin.index_select(0, at_positions).unsqueeze(1);
  const at::Tensor a = x.slice(-1, 0, half), b = x.slice(-1, half);
  return at::cat({a * c - b * s, b * c + a * s}, -1);
}

at::Tensor normed(const at::Tensor& x, const at::Tensor& weight, double eps) {
  return x * (x.square().mean(-1, /*keepdim=*/true) + eps).rsqrt() * weight;
}
}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype) {
  return normed(widened(x), weight, eps).to(out_dtype);
}

at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  return rotated(widened(x), cos, sin, positions).to(x.scalar_type());
}

at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions) {
  at::Tensor q = widened(qkv.narrow(1, 0, num_heads)), k = widened(qkv.narrow(1, num_heads, num_kv_heads));
  if (q_weight.defined()) q = normed(q, q_weight, eps);
  if (k_weight.defined()) k = normed(k, k_weight, eps);
  const at::Tensor v = widened(qkv.narrow(1, num_heads + num_kv_heads, num_kv_heads));
  return at::cat({rotated(q, cos, sin, positions), rotated(k, cos, sin, positions), v}, 1).to(qkv.scalar_type());
}

at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype) {
  const auto halves = widened(gate_up).chunk(2, -1);
  return (at::silu(halves[0]) * halves[1]).to(out_dtype);
}

}  // namespace temper::reference
