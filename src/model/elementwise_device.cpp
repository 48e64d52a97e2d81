#include "model/elementwise_device.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

namespace temper::device {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

// x [T, heads, D] → the first `rotated` heads turned by cos and sin [T, 1, D/2], the others as they are. direction -1
// turns back: the gradient.
at::Tensor turn(const at::Tensor& x, int64_t rotated, const at::Tensor& cos, const at::Tensor& sin, double direction) {
  at::Tensor out = at::empty(x.sizes(), x.options());
  const int64_t half = x.size(2) / 2;
  const auto part = [&](const at::Tensor& of, int64_t begin) {
    return of.narrow(1, 0, rotated).narrow(2, begin, half);
  };
  const at::Tensor a = part(x, 0), b = part(x, half);
  at::Tensor out_a = part(out, 0), out_b = part(out, half);
  at::addcmul_out(out_a, a * cos, b, sin, -direction);
  at::addcmul_out(out_b, b * cos, a, sin, direction);
  if (rotated < x.size(1)) out.slice(1, rotated).copy_(x.slice(1, rotated));
  return out;
}

struct Turn : torch::autograd::Function<Turn> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, int64_t rotated, const at::Tensor& cos,
                            const at::Tensor& sin) {
    context->save_for_backward({cos, sin});
    context->saved_data["rotated"] = rotated;
    return turn(x, rotated, cos, sin, 1);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto saved = context->get_saved_variables();
    return {turn(grads[0], context->saved_data["rotated"].toInt(), saved[0], saved[1], -1), {}, {}, {}};
  }
};

at::Tensor silu_mul_forward(const at::Tensor& gate_up, at::ScalarType out_dtype) {
  const auto halves = gate_up.chunk(2, -1);
  at::Tensor out = at::empty(halves[0].sizes(), gate_up.options().dtype(out_dtype));
  at::mul_out(out, at::silu(halves[0].to(at::kFloat)), halves[1]);
  return out;
}

struct SiluMul : torch::autograd::Function<SiluMul> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up, at::ScalarType out_dtype) {
    context->save_for_backward({gate_up});
    return silu_mul_forward(gate_up, out_dtype);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const at::Tensor gate_up = context->get_saved_variables()[0], grad = grads[0].to(at::kFloat);
    const auto halves = gate_up.chunk(2, -1);
    const at::Tensor gate = halves[0].to(at::kFloat);
    at::Tensor out = at::empty(gate_up.sizes(), gate_up.options());
    auto out_halves = out.chunk(2, -1);
    out_halves[0].copy_(at::silu_backward(grad * halves[1], gate));
    at::mul_out(out_halves[1], grad, at::silu(gate));
    return {out, {}};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype) {
  return at::rms_norm(x.to(at::kFloat), {x.size(-1)}, weight, eps).to(out_dtype);
}

at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions) {
  at::Tensor x = qkv;
  if (q_weight.defined() || k_weight.defined()) {
    const auto normed = [&](int64_t begin, int64_t heads, const at::Tensor& weight) {
      const at::Tensor part = qkv.narrow(1, begin, heads);
      return weight.defined() ? rms_norm(part, weight, eps, qkv.scalar_type()) : part;
    };
    x = at::cat({normed(0, num_heads, q_weight), normed(num_heads, num_kv_heads, k_weight),
                 qkv.narrow(1, num_heads + num_kv_heads, num_kv_heads)},
                1);
  }
  const at::Tensor c = cos.index_select(0, positions).unsqueeze(1), s = sin.index_select(0, positions).unsqueeze(1);
  const int64_t rotated = num_heads + num_kv_heads;
  if (at::GradMode::is_enabled() && x.requires_grad()) return Turn::apply(x, rotated, c, s);
  return turn(x, rotated, c, s, 1);
}

at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype) {
  if (at::GradMode::is_enabled() && gate_up.requires_grad()) return SiluMul::apply(gate_up, out_dtype);
  return silu_mul_forward(gate_up, out_dtype);
}

}  // namespace temper::device
