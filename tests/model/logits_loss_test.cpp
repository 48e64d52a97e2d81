#include "model/logits_loss.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

namespace temper {
namespace {

// KL(teacher || student) of each row.
at::Tensor forward_kl(const at::Tensor& student, const at::Tensor& teacher) {
  const at::Tensor log_s = at::log_softmax(student, -1), log_t = at::log_softmax(teacher, -1);
  return (log_t.exp() * (log_t - log_s)).sum(-1);
}

TEST(LogitsLoss, ValuesAndGradientsAreThoseOfWholeLogitsInF64) {
  at::Generator generator = at::detail::createCPUGenerator(4);
  const auto random = [&](int64_t rows, int64_t columns) {
    return at::randn({rows, columns}, generator, at::TensorOptions(at::kFloat));
  };
  const int64_t rows = 150, vocabulary = 301;  // three pieces, the last one ragged
  const at::Tensor x = random(rows, 32), teacher_x = random(rows, 48), grad = random(1, rows).squeeze(0);
  const at::Tensor weight = random(vocabulary, 32), teacher_weight = random(vocabulary, 48);
  LinearWeights head, teacher_head;
  head.load(weight, {}, at::kFloat, true);
  head.weight_grad = at::zeros_like(weight);
  teacher_head.load(teacher_weight, {}, at::kFloat, false);
  at::Tensor hidden = x.clone().requires_grad_(true);
  const at::Tensor got = logits_loss(hidden, head, teacher_x, teacher_head, forward_kl);
  (got * grad).sum().backward();

  at::Tensor exact_hidden = x.to(at::kDouble).requires_grad_(true);
  at::Tensor exact_weight = weight.to(at::kDouble).requires_grad_(true);
  const at::Tensor wanted = forward_kl(at::matmul(exact_hidden, exact_weight.t()),
                                       at::matmul(teacher_x.to(at::kDouble), teacher_weight.to(at::kDouble).t()));
  (wanted * grad.to(at::kDouble)).sum().backward();
  const auto close = [](const at::Tensor& a, const at::Tensor& b) {
    return (a - b).abs().max().item<double>() <= 1e-5 * b.abs().max().item<double>();
  };
  EXPECT_TRUE(close(got, wanted));
  EXPECT_TRUE(close(hidden.grad(), exact_hidden.grad()));
  EXPECT_TRUE(close(head.weight_grad, exact_weight.grad()));

  const at::NoGradGuard no_grad;
  EXPECT_TRUE(at::equal(logits_loss(x, head, teacher_x, teacher_head, forward_kl), got));
}

}  // namespace
}  // namespace temper
