// Hangs the kernels into autograd and shares rows out.
#include "model/elementwise.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <torch/csrc/autograd/custom_function.h>

#include <algorithm>

#include "core/error.h"
#include "model/cpu_dispatch.h"
#include "model/elementwise_device.h"
#include "model/elementwise_kernels.h"

namespace temper {

namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

constexpr int64_t kChunkElements = 1 << 15;  // of a parallel task

bool use_kernels(const at::Tensor& x, at::ScalarType out_dtype) {
  return x.device().is_cpu() && is_kernel_dtype(x.scalar_type()) && is_kernel_dtype(out_dtype);
}
bool differentiates(std::initializer_list<at::Tensor> inputs) {
  return at::GradMode::is_enabled() &&
         std::any_of(inputs.begin(), inputs.end(), [](const auto& x) { return x.defined() && x.requires_grad(); });
}
bool is_bf16(at::ScalarType dtype) { return dtype == at::kBFloat16; }
int64_t rows_per_chunk(int64_t row_size) {
  return std::max<int64_t>(1, kChunkElements / std::max<int64_t>(1, row_size));
}

template <class Task>
void for_rows(int64_t num_rows, int64_t row_size, void (*kernel)(const Task&), Task task) {
  at::parallel_for(0, num_rows, rows_per_chunk(row_size), [&](int64_t begin, int64_t end) {
    Task part = task;
    part.begin = begin;
    part.end = end;
    kernel(part);
  });
}

// As for_rows, in chunks that depend on the shape alone; kernel(task, partial sums of the chunk [num_sums]). Returns
// the sum of the partial sums in the chunks' order.
template <class Task, class Run>
at::Tensor for_rows_with_sums(int64_t num_rows, int64_t row_size, int64_t num_sums, const Task& task, const Run& run) {
  const int64_t chunk = rows_per_chunk(row_size), num_chunks = (num_rows + chunk - 1) / chunk;
  const at::Tensor partial = at::zeros({num_chunks, num_sums}, at::kFloat);
  float* sums = partial.data_ptr<float>();
  at::parallel_for(0, num_chunks, 1, [&](int64_t begin, int64_t end) {
    for (int64_t c = begin; c < end; ++c) {
      Task part = task;
      part.begin = c * chunk;
      part.end = std::min(num_rows, part.begin + chunk);
      run(part, sums + c * num_sums);
    }
  });
  const at::Tensor total = at::zeros({num_sums}, at::kFloat);
  float* result = total.data_ptr<float>();
  for (int64_t c = 0; c < num_chunks; ++c)
    for (int64_t i = 0; i < num_sums; ++i) result[i] += sums[c * num_sums + i];
  return total;
}

// ---- RMSNorm ----

// A view that RowLayout can address, or a copy.
at::Tensor with_layout(const at::Tensor& x) {
  return x.is_contiguous() || (x.dim() == 2 && x.stride(1) == 1) || (x.dim() == 3 && x.stride(2) == 1) ? x
                                                                                                       : x.contiguous();
}
RowLayout layout_of(const at::Tensor& x) {
  if (x.is_contiguous()) return {1, x.size(-1), 0};
  return x.dim() == 2 ? RowLayout{1, x.stride(0), 0} : RowLayout{x.size(1), x.stride(0), x.stride(1)};
}

RmsNormTask rms_norm_task(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype) {
  RmsNormTask task;
  task.x = x.const_data_ptr();
  task.x_layout = layout_of(x);
  task.weight = weight.const_data_ptr<float>();
  task.size = x.size(-1);
  task.eps = static_cast<float>(eps);
  task.x_bf16 = is_bf16(x.scalar_type());
  task.out_bf16 = is_bf16(out_dtype);
  return task;
}

at::Tensor rms_norm_forward(const at::Tensor& given, const at::Tensor& weight, double eps, at::ScalarType out_dtype) {
  const at::Tensor x = with_layout(given), scale = weight.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options().dtype(out_dtype));
  if (x.numel() == 0) return out;
  RmsNormTask task = rms_norm_task(x, scale, eps, out_dtype);
  task.out = out.mutable_data_ptr();
  for_rows(x.numel() / task.size, task.size, elementwise_kernels().rms_norm, task);
  return out;
}

class RmsNorm : public torch::autograd::Function<RmsNorm> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const at::Tensor& weight, double eps,
                            int64_t out_dtype) {
    context->save_for_backward({x, weight});
    context->saved_data["eps"] = eps;
    return rms_norm_forward(x, weight, eps, static_cast<at::ScalarType>(out_dtype));
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor x = with_layout(saved[0]), weight = saved[1].contiguous(), grad_out = grads[0].contiguous();
    at::Tensor grad_x = at::empty(x.sizes(), x.options());
    if (x.numel() == 0) return {grad_x, at::zeros_like(weight), {}, {}};
    RmsNormTask task = rms_norm_task(x, weight, context->saved_data["eps"].toDouble(), grad_out.scalar_type());
    task.grad_out = grad_out.const_data_ptr();
    task.grad_x = grad_x.mutable_data_ptr();
    const ElementwiseKernels& kernels = elementwise_kernels();
    const at::Tensor grad_weight =
        for_rows_with_sums(x.numel() / task.size, task.size, task.size, task, [&](RmsNormTask& part, float* sums) {
          part.grad_weight = sums;
          kernels.rms_norm_backward(part);
        });
    return {grad_x, grad_weight, {}, {}};
  }
};

// ---- rotary embedding, with or without the norms of q and k ----

struct RopeShape {
  int64_t num_q = 0, num_k = 0;
};

RopeTask rope_task(const at::Tensor& x, RopeShape shape, const at::Tensor& q_weight, const at::Tensor& k_weight,
                   double eps, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  RopeTask task;
  task.num_heads = x.size(1);
  task.num_q = shape.num_q;
  task.num_k = shape.num_k;
  task.head_dim = x.size(2);
  if (q_weight.defined()) task.q_weight = q_weight.const_data_ptr<float>();
  if (k_weight.defined()) task.k_weight = k_weight.const_data_ptr<float>();
  task.eps = static_cast<float>(eps);
  task.cos = cos.const_data_ptr<float>();
  task.sin = sin.const_data_ptr<float>();
  task.positions = positions.const_data_ptr<int64_t>();
  task.bf16 = is_bf16(x.scalar_type());
  return task;
}

at::Tensor rope_forward(const at::Tensor& given, RopeShape shape, const at::Tensor& q_weight,
                        const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                        const at::Tensor& positions) {
  const at::Tensor x = given.stride(2) == 1 ? given : given.contiguous();
  at::Tensor out = at::empty(x.sizes(), x.options());
  RopeTask task = rope_task(x, shape, q_weight, k_weight, eps, cos, sin, positions);
  task.x = x.const_data_ptr();
  task.x_token_stride = x.stride(0);
  task.x_head_stride = x.stride(1);
  task.out = out.mutable_data_ptr();
  for_rows(x.size(0), x.size(1) * x.size(2), elementwise_kernels().rope, task);
  return out;
}

class NormRope : public torch::autograd::Function<NormRope> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const std::optional<at::Tensor>& q_weight,
                            const std::optional<at::Tensor>& k_weight, int64_t num_q, int64_t num_k, double eps,
                            const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
    const at::Tensor q = q_weight.value_or(at::Tensor()), k = k_weight.value_or(at::Tensor());
    // Without norms the map is linear: the backward needs the angles alone.
    const bool normed = q.defined() || k.defined();
    context->save_for_backward({normed ? x : at::empty({0}, x.options()), q, k, cos, sin, positions});
    context->saved_data["num_q"] = num_q;
    context->saved_data["num_k"] = num_k;
    context->saved_data["eps"] = eps;
    return rope_forward(x, {num_q, num_k}, q, k, eps, cos, sin, positions);
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    const auto saved = context->get_saved_variables();
    const at::Tensor grad_out = grads[0].contiguous();
    const RopeShape shape{context->saved_data["num_q"].toInt(), context->saved_data["num_k"].toInt()};
    at::Tensor grad_x = at::empty(grad_out.sizes(), grad_out.options());
    RopeTask task = rope_task(grad_out, shape, saved[1], saved[2], context->saved_data["eps"].toDouble(), saved[3],
                              saved[4], saved[5]);
    at::Tensor x = saved[0];
    if (x.dim() == 3) {
      if (x.stride(2) != 1) x = x.contiguous();
      task.x = x.const_data_ptr();
      task.x_token_stride = x.stride(0);
      task.x_head_stride = x.stride(1);
    }
    task.grad_out = grad_out.const_data_ptr();
    task.grad_x = grad_x.mutable_data_ptr();
    const ElementwiseKernels& kernels = elementwise_kernels();
    const int64_t head_dim = task.head_dim;
    const at::Tensor sums = for_rows_with_sums(grad_out.size(0), grad_out.size(1) * head_dim, 2 * head_dim, task,
                                               [&](RopeTask& part, float* partial) {
                                                 part.grad_q_weight = partial;
                                                 part.grad_k_weight = partial + head_dim;
                                                 kernels.rope_backward(part);
                                               });
    return {grad_x,
            saved[1].defined() ? sums.narrow(0, 0, head_dim) : at::Tensor(),
            saved[2].defined() ? sums.narrow(0, head_dim, head_dim) : at::Tensor(),
            {},
            {},
            {},
            {},
            {},
            {}};
  }
};

void check_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  TEMPER_CHECK(x.dim() == 3 && x.size(2) % 2 == 0, "rope needs [T, heads, even D], got {}", x.sizes());
  TEMPER_CHECK(cos.dim() == 2 && cos.sizes() == sin.sizes() && cos.size(1) == x.size(2) / 2 && positions.dim() == 1 &&
                   positions.size(0) == x.size(0) && positions.scalar_type() == at::kLong,
               "cos {}, sin {} and positions {} do not fit x {}", cos.sizes(), sin.sizes(), positions.sizes(),
               x.sizes());
}

at::Tensor rope(const at::Tensor& x, RopeShape shape, const at::Tensor& q_weight, const at::Tensor& k_weight,
                double eps, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  const at::Tensor angles_cos = cos.contiguous(), angles_sin = sin.contiguous(), at_positions = positions.contiguous();
  const int64_t* position = at_positions.const_data_ptr<int64_t>();
  for (int64_t t = 0; t < x.size(0); ++t)
    TEMPER_CHECK(position[t] >= 0 && position[t] < cos.size(0),
                 "position {} of token {} lies outside the {} of the table", position[t], t, cos.size(0));
  const auto dense = [](const at::Tensor& w) { return w.defined() ? w.contiguous() : w; };
  if (differentiates({x, q_weight, k_weight}))
    return NormRope::apply(x, std::optional<at::Tensor>(dense(q_weight)), std::optional<at::Tensor>(dense(k_weight)),
                           shape.num_q, shape.num_k, eps, angles_cos, angles_sin, at_positions);
  return rope_forward(x, shape, dense(q_weight), dense(k_weight), eps, angles_cos, angles_sin, at_positions);
}

// ---- SiLU times up ----

SiluMulTask silu_mul_task(const at::Tensor& gate_up, at::ScalarType out_dtype) {
  SiluMulTask task;
  task.gate_up = gate_up.const_data_ptr();
  task.row_stride = gate_up.stride(0);
  task.size = gate_up.size(1) / 2;
  task.in_bf16 = is_bf16(gate_up.scalar_type());
  task.out_bf16 = is_bf16(out_dtype);
  return task;
}

at::Tensor silu_mul_forward(const at::Tensor& given, at::ScalarType out_dtype) {
  const at::Tensor gate_up = given.stride(1) == 1 ? given : given.contiguous();
  at::Tensor out = at::empty({gate_up.size(0), gate_up.size(1) / 2}, gate_up.options().dtype(out_dtype));
  SiluMulTask task = silu_mul_task(gate_up, out_dtype);
  task.out = out.mutable_data_ptr();
  for_rows(gate_up.size(0), task.size, elementwise_kernels().silu_mul, task);
  return out;
}

class SiluMul : public torch::autograd::Function<SiluMul> {
 public:
  static at::Tensor forward(AutogradContext* context, const at::Tensor& gate_up, int64_t out_dtype) {
    context->save_for_backward({gate_up});
    return silu_mul_forward(gate_up, static_cast<at::ScalarType>(out_dtype));
  }
  static variable_list backward(AutogradContext* context, variable_list grads) {
    at::Tensor gate_up = context->get_saved_variables()[0];
    if (gate_up.stride(1) != 1) gate_up = gate_up.contiguous();
    const at::Tensor grad_out = grads[0].contiguous();
    at::Tensor grad = at::empty(gate_up.sizes(), gate_up.options());
    SiluMulTask task = silu_mul_task(gate_up, grad_out.scalar_type());
    task.grad_out = grad_out.const_data_ptr();
    task.grad_gate_up = grad.mutable_data_ptr();
    for_rows(gate_up.size(0), task.size, elementwise_kernels().silu_mul_backward, task);
    return {grad, {}};
  }
};

}  // namespace

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype) {
  TEMPER_CHECK(x.dim() >= 1 && weight.dim() == 1 && weight.size(0) == x.size(-1), "weight {} does not fit x {}",
               weight.sizes(), x.sizes());
  if (x.is_cuda()) return device::rms_norm(x, weight, eps, out_dtype);
  if (!use_kernels(x, out_dtype) || weight.scalar_type() != at::kFloat)
    return reference::rms_norm(x, weight, eps, out_dtype);
  if (differentiates({x, weight})) return RmsNorm::apply(x, weight, eps, static_cast<int64_t>(out_dtype));
  return rms_norm_forward(x, weight, eps, out_dtype);
}

at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions) {
  check_rope(x, cos, sin, positions);
  if (!use_kernels(x, x.scalar_type()) || cos.scalar_type() != at::kFloat || x.size(2) > kMaxRopeDim)
    return reference::apply_rope(x, cos, sin, positions);
  return rope(x, {x.size(1), 0}, {}, {}, 0, cos, sin, positions);
}

at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions) {
  check_rope(qkv, cos, sin, positions);
  TEMPER_CHECK(qkv.size(1) == num_heads + 2 * num_kv_heads, "qkv {} is not [T, {} + 2 * {}, D]", qkv.sizes(), num_heads,
               num_kv_heads);
  for (const at::Tensor& weight : {q_weight, k_weight})
    TEMPER_CHECK(!weight.defined() || (weight.dim() == 1 && weight.size(0) == qkv.size(2)),
                 "norm weight does not fit qkv {}", qkv.sizes());
  if (qkv.is_cuda())
    return device::norm_rope_qkv(qkv, num_heads, num_kv_heads, q_weight, k_weight, eps, cos, sin, positions);
  if (!use_kernels(qkv, qkv.scalar_type()) || cos.scalar_type() != at::kFloat || qkv.size(2) > kMaxRopeDim)
    return reference::norm_rope_qkv(qkv, num_heads, num_kv_heads, q_weight, k_weight, eps, cos, sin, positions);
  return rope(qkv, {num_heads, num_kv_heads}, q_weight, k_weight, eps, cos, sin, positions);
}

at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype) {
  TEMPER_CHECK(gate_up.dim() == 2 && gate_up.size(1) % 2 == 0, "gate_up {} is not [T, 2 I]", gate_up.sizes());
  if (gate_up.is_cuda()) return device::silu_mul(gate_up, out_dtype);
  if (!use_kernels(gate_up, out_dtype)) return reference::silu_mul(gate_up, out_dtype);
  if (differentiates({gate_up})) return SiluMul::apply(gate_up, static_cast<int64_t>(out_dtype));
  return silu_mul_forward(gate_up, out_dtype);
}

}  // namespace temper
