#include "model/linear.h"

#include <ATen/ATen.h>
#include <torch/csrc/autograd/custom_function.h>

#include "core/error.h"

namespace temper {
namespace {

using torch::autograd::AutogradContext;
using torch::autograd::variable_list;

bool records_gradient(const at::Tensor& x) { return at::GradMode::is_enabled() && x.requires_grad(); }

// dy → gradient of x; adds the weights' own gradients. What is summed over ranks travels meanwhile.
at::Tensor backward_product(const at::Tensor& dy_any, const at::Tensor& x, const LinearWeights& weights) {
  const at::Tensor dy = dy_any.to(x.scalar_type());
  const bool shared = weights.output_ranks != nullptr;
  const at::Tensor dx = weights.backward.multiply(dy, shared ? at::kFloat : x.scalar_type());
  CommHandle sum;
  if (shared) sum = weights.output_ranks->all_reduce("gradient of a layer's input", dx);
  if (weights.weight_grad.defined()) {
    at::Tensor grad = weights.weight_grad;
    accumulate_outer_product(dy, x, grad);
  }
  if (weights.bias_grad.defined()) {
    at::Tensor grad = weights.bias_grad;
    grad.add_(dy_any.sum(0, /*keepdim=*/false, at::kFloat));
  }
  sum.wait();
  return dx.to(x.scalar_type());
}

// out + x · Wᵀ (+ bias), in place.
at::Tensor add_product(at::Tensor out, const at::Tensor& x, const LinearWeights& weights) {
  if (weights.input_ranks == nullptr) {
    weights.forward.multiply_add(x, out);
  } else {
    const at::Tensor product = weights.forward.multiply(x, at::kFloat);
    weights.input_ranks->all_reduce("a layer's output", product).wait();
    out.add_(product);
  }
  if (weights.bias.defined()) out.add_(weights.bias);
  return out;
}

// The weights outlive the graph: the model owns them, and a graph lives for one micro-batch.
struct Linear : torch::autograd::Function<Linear> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& x, const LinearWeights* weights,
                            at::ScalarType out_dtype) {
    context->save_for_backward({x});
    context->saved_data["weights"] = reinterpret_cast<int64_t>(weights);
    return weights->forward.multiply(x, out_dtype, weights->bias);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& weights = *reinterpret_cast<const LinearWeights*>(context->saved_data["weights"].toInt());
    return {backward_product(grads[0], context->get_saved_variables()[0], weights), at::Tensor(), at::Tensor()};
  }
};

struct LinearAdd : torch::autograd::Function<LinearAdd> {
  static at::Tensor forward(AutogradContext* context, const at::Tensor& residual, const at::Tensor& x,
                            const LinearWeights* weights) {
    context->save_for_backward({x});
    context->saved_data["weights"] = reinterpret_cast<int64_t>(weights);
    return add_product(residual.clone(), x, *weights);
  }
  static variable_list backward(AutogradContext* context, const variable_list& grads) {
    const auto& weights = *reinterpret_cast<const LinearWeights*>(context->saved_data["weights"].toInt());
    return {grads[0], backward_product(grads[0], context->get_saved_variables()[0], weights), at::Tensor()};
  }
};

}  // namespace

void LinearWeights::load(const at::Tensor& weight, const at::Tensor& bias_master, at::ScalarType compute,
                         bool trainable, WeightFormat format) {
  TEMPER_CHECK(!trainable || format == WeightFormat::kCompute, "int8 weights are for generation");
  forward.pack(weight, compute, format);
  if (trainable && weight.is_cpu()) backward.pack_transposed(weight, compute);
  if (trainable && !weight.is_cpu()) backward = forward.transposed();
  // Never a view of the masters: their memory may be let go while the block is computed with (sharded weights).
  if (bias_master.defined()) bias = round_to(bias_master, compute).clone();
}

at::Tensor linear(const at::Tensor& x, const LinearWeights& weights, at::ScalarType out_dtype) {
  if (!records_gradient(x)) return weights.forward.multiply(x, out_dtype, weights.bias);
  TEMPER_CHECK(weights.backward.defined(), "this model was loaded for generation only");
  return Linear::apply(x, &weights, out_dtype);
}

at::Tensor linear_add(const at::Tensor& residual, const at::Tensor& x, const LinearWeights& weights) {
  if (!records_gradient(x)) return add_product(residual, x, weights);
  TEMPER_CHECK(weights.backward.defined(), "this model was loaded for generation only");
  return LinearAdd::apply(residual, x, &weights);
}

at::Tensor round_to(const at::Tensor& values, at::ScalarType compute) {
  return compute == at::kFloat ? values : values.to(compute).to(at::kFloat);
}

}  // namespace temper
