#include "model/token_logprobs.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

namespace temper {
namespace {

struct Case {
  at::Tensor hidden, targets, weight, grad;
};

// A vocabulary of several blocks, the last one ragged.
Case make_case(int64_t rows, int64_t vocabulary) {
  at::Generator generator = at::detail::createCPUGenerator(3);
  Case made;
  made.hidden = at::randn({rows, 32}, generator, at::TensorOptions(at::kFloat));
  made.weight = at::randn({vocabulary, 32}, generator, at::TensorOptions(at::kFloat));
  made.targets = at::randint(0, vocabulary, {rows}, generator, at::TensorOptions(at::kLong));
  made.targets[0] = 0;
  made.targets[1] = vocabulary - 1;
  made.targets[2] = 2047;
  made.targets[3] = 2048;
  made.grad = at::randn({rows}, generator, at::TensorOptions(at::kFloat));
  return made;
}

TEST(TokenLogprobs, ValuesAndGradientsAreThoseOfLogSoftmaxInF64) {
  const double temperature = 0.7;
  const Case given = make_case(37, 5003);
  at::Tensor weight_grad = at::zeros_like(given.weight);
  LinearWeights head;
  head.load(given.weight, {}, at::kFloat, true);
  head.weight_grad = weight_grad;
  at::Tensor hidden = given.hidden.clone().requires_grad_(true);
  const TokenLogprobs got = token_logprobs(hidden, given.targets, head, temperature);
  (got.logprobs * given.grad).sum().backward();

  at::Tensor exact_hidden = given.hidden.to(at::kDouble).requires_grad_(true);
  at::Tensor exact_weight = given.weight.to(at::kDouble).requires_grad_(true);
  const at::Tensor log_softmax = at::log_softmax(at::matmul(exact_hidden, exact_weight.t()) / temperature, 1);
  const at::Tensor wanted = log_softmax.gather(1, given.targets.unsqueeze(1)).squeeze(1);
  (wanted * given.grad.to(at::kDouble)).sum().backward();
  const at::Tensor entropy = -(log_softmax.exp() * log_softmax).sum(1);

  EXPECT_LE((got.logprobs - wanted).abs().max().item<double>(), 2e-5);
  EXPECT_LE((got.entropies - entropy).abs().max().item<double>(), 2e-5);
  EXPECT_FALSE(got.entropies.requires_grad());
  EXPECT_LE((hidden.grad() - exact_hidden.grad()).abs().max().item<double>(),
            1e-5 * exact_hidden.grad().abs().max().item<double>());
  EXPECT_LE((weight_grad - exact_weight.grad()).abs().max().item<double>(),
            1e-5 * exact_weight.grad().abs().max().item<double>());
}

TEST(TokenLogprobs, EntropiesAreDifferentiableWhereAskedFor) {
  const double temperature = 1.4;
  const Case given = make_case(21, 4099);
  const at::Tensor entropy_grad = given.grad.flip(0);
  at::Tensor weight_grad = at::zeros_like(given.weight);
  LinearWeights head;
  head.load(given.weight, {}, at::kFloat, true);
  head.weight_grad = weight_grad;
  at::Tensor hidden = given.hidden.clone().requires_grad_(true);
  const TokenLogprobs got = token_logprobs(hidden, given.targets, head, temperature, /*entropy_gradient=*/true);
  (got.logprobs * given.grad + got.entropies * entropy_grad).sum().backward();

  at::Tensor exact_hidden = given.hidden.to(at::kDouble).requires_grad_(true);
  at::Tensor exact_weight = given.weight.to(at::kDouble).requires_grad_(true);
  const at::Tensor log_softmax = at::log_softmax(at::matmul(exact_hidden, exact_weight.t()) / temperature, 1);
  const at::Tensor wanted = log_softmax.gather(1, given.targets.unsqueeze(1)).squeeze(1);
  const at::Tensor entropy = -(log_softmax.exp() * log_softmax).sum(1);
  (wanted * given.grad.to(at::kDouble) + entropy * entropy_grad.to(at::kDouble)).sum().backward();
  EXPECT_LE((hidden.grad() - exact_hidden.grad()).abs().max().item<double>(),
            2e-5 * exact_hidden.grad().abs().max().item<double>());
  EXPECT_LE((weight_grad - exact_weight.grad()).abs().max().item<double>(),
            2e-5 * exact_weight.grad().abs().max().item<double>());
}

TEST(TokenLogprobs, WithoutGradientTheValuesAreTheSameBits) {
  const Case given = make_case(11, 4099);
  LinearWeights head;
  head.load(given.weight, {}, at::kFloat, true);
  head.weight_grad = at::zeros_like(given.weight);
  const TokenLogprobs with = token_logprobs(given.hidden.clone().requires_grad_(true), given.targets, head, 1.0);
  at::NoGradGuard no_grad;
  const TokenLogprobs without = token_logprobs(given.hidden, given.targets, head, 1.0);
  EXPECT_TRUE(at::equal(with.logprobs, without.logprobs));
  EXPECT_TRUE(at::equal(with.entropies, without.entropies));
}

TEST(TokenLogprobs, NoTokensGiveNoNumbers) {
  const Case given = make_case(4, 4099);
  LinearWeights head;
  head.load(given.weight, {}, at::kFloat, false);
  EXPECT_EQ(token_logprobs(given.hidden.narrow(0, 0, 0), given.targets.narrow(0, 0, 0), head, 1.0).logprobs.numel(), 0);
}

}  // namespace
}  // namespace temper
