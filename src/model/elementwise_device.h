// The pieces of elementwise.h on a GPU, by few of LibTorch's kernels: arithmetic in f32, storage in the given dtype,
// and no more kept for the backward pass than the inputs. They run on the CPU too, where the tests hold them to the
// plain implementation. Called by elementwise.cpp, with its arguments.
#pragma once
#include <ATen/core/Tensor.h>

namespace temper::device {

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double eps, at::ScalarType out_dtype);
at::Tensor norm_rope_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads, const at::Tensor& q_weight,
                         const at::Tensor& k_weight, double eps, const at::Tensor& cos, const at::Tensor& sin,
                         const at::Tensor& positions);
at::Tensor silu_mul(const at::Tensor& gate_up, at::ScalarType out_dtype);

}  // namespace temper::device
