// The memory-bound pieces of a layer, fused and differentiable: RMSNorm, rotary embedding, SiLU times up. Called by the
// layers of training and of the engine alike, from one thread; rows are shared out with at::parallel_for, so results do
// not depend on the number of threads. Arithmetic is f32 whatever the storage (f32 or bf16); each function saves its
// inputs (or less) and recomputes the rest in its backward. CPU tensors in f32 and bf16 take our kernels, those
// of a GPU elementwise_device.h, everything else plain ATen.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>

namespace temper {

// x [..., N] -> x / sqrt(mean(x^2) + eps) * weight in out_dtype; weight f32 [N]. For norms per head pass x [T, heads,
// D] (strided views are fine as long as the last dimension is contiguous). dx has x's dtype, dweight is f32.
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype);

// Rotates x [T, heads, D] by its position: Hugging Face's convention, dimension i pairs with i + D/2.
// cos and sin f32 [positions, D/2], positions int64 [T]; the result is contiguous, in x's dtype.
at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions);

// The fused product qkv [T, H + 2 KV, D] with q and k normed per head (weights f32 [D]; undefined tensors: no norm) and
// rotated, v untouched: one pass, and one gradient tensor in the backward. Goes with packed_attention_qkv.
at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions);

// gate_up [T, 2 I] (gate first) -> silu(gate) * up [T, I] in out_dtype.
at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype);

// Plain ATen, any device and floating dtype, differentiated by autograd. What the kernels are tested against.
namespace reference {
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype);
at::Tensor apply_rope(const at::Tensor& x, const at::Tensor& cos, const at::Tensor& sin, const at::Tensor& positions);
at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions);
at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype);
}  // namespace reference

}  // namespace temper
