#include "model/tensor_parallel.h"

#include <ATen/ATen.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include "core/error.h"
#include "model/initialize.h"
#include "model/logits_loss.h"
#include "model/model_weights.h"
#include "model/token_logprobs.h"
#include "tests/comm/thread_ranks.h"

namespace temper {
namespace {

ModelConfig shape(ModelFamily family, bool tied) {
  ModelConfig config;
  config.family = family;
  config.hidden_size = 16;
  config.intermediate_size = 22;  // 3 ranks: 7, 7 and 8
  config.num_layers = 2;
  config.num_heads = 6;
  config.num_kv_heads = 3;
  config.head_dim = 4;
  config.vocab_size = 53;
  config.max_position_embeddings = 32;
  config.tie_word_embeddings = tied;
  config.qkv_bias = family != ModelFamily::kQwen3;
  config.o_bias = config.mlp_bias = family == ModelFamily::kLlama;
  config.qk_norm = family == ModelFamily::kQwen3;
  config.value_head = true;
  return config;
}

void on_ranks(int num_ranks, const std::function<void(Communicator&)>& run) {
  on_thread_ranks(num_ranks, {.timeout = std::chrono::seconds(60), .check_agreement = true}, run);
}

FlatParameters part_of(const ModelConfig& config, const FlatParameters& whole, const TensorPart& part) {
  const FlatParameters own(part_config(config, part));
  read_parameters(weights_of({config, whole}), own, part);
  return own;
}

TEST(TensorParts, PutTogetherAreTheWhole) {
  for (const ModelFamily family : {ModelFamily::kLlama, ModelFamily::kQwen2, ModelFamily::kQwen3})
    for (const bool tied : {false, true}) {
      const ModelConfig config = shape(family, tied);
      FlatParameters whole(config);
      for (const ParameterSpec& spec : whole.specs()) whole[spec.name].normal_();
      on_ranks(3, [&](Communicator& comm) {
        const FlatParameters part = part_of(config, whole, {comm.rank(), comm.size()});
        EXPECT_LT(part.flat().numel(), whole.flat().numel() / 2);
        for (int64_t block = -1; block < config.num_layers; ++block) {
          const FlatParameters joined = join_parts(segment_layout(config, block), part, comm, at::kCPU);
          for (const ParameterSpec& spec : joined.specs())
            EXPECT_TRUE(at::equal(joined[spec.name], whole[spec.name])) << spec.name;
        }
      });
    }
}

TEST(TensorParts, TakeTheRowsAndColumnsOfTheirHeads) {
  const ModelConfig config = shape(ModelFamily::kQwen2, false);
  FlatParameters whole(config);
  for (const ParameterSpec& spec : whole.specs()) whole[spec.name].normal_();
  const FlatParameters part = part_of(config, whole, {1, 3});
  const std::string layer = "model.layers.1.";
  const auto expect = [&](const std::string& name, const at::Tensor& expected) {
    EXPECT_TRUE(at::equal(part[name], expected)) << name;
  };
  // Of six heads of 4 the second rank has the third and fourth, of three key/value heads the second.
  expect(layer + "self_attn.q_proj.weight", whole[layer + "self_attn.q_proj.weight"].slice(0, 8, 16));
  expect(layer + "self_attn.q_proj.bias", whole[layer + "self_attn.q_proj.bias"].slice(0, 8, 16));
  expect(layer + "self_attn.v_proj.weight", whole[layer + "self_attn.v_proj.weight"].slice(0, 4, 8));
  expect(layer + "self_attn.o_proj.weight", whole[layer + "self_attn.o_proj.weight"].slice(1, 8, 16));
  expect(layer + "mlp.up_proj.weight", whole[layer + "mlp.up_proj.weight"].slice(0, 7, 14));
  expect(layer + "mlp.down_proj.weight", whole[layer + "mlp.down_proj.weight"].slice(1, 7, 14));
  expect("lm_head.weight", whole["lm_head.weight"].slice(0, 17, 35));
  expect("model.norm.weight", whole["model.norm.weight"]);
}

TEST(TensorParts, AreRefusedWithTheNumbers) {
  try {
    check_tensor_parallel(shape(ModelFamily::kLlama, true), 2, "the model");
    FAIL() << "3 key/value heads for 2 ranks";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(
        error.what(),
        "train.tensor_parallel = 2: the model has 3 key/value heads (num_key_value_heads), which so many ranks "
        "cannot share evenly. Give a divisor of 3.");
  }
}

// A head [V, K] and rows that meet it.
struct Problem {
  at::Tensor weight = at::randn({53, 16}), teacher = at::randn({53, 16});
  at::Tensor hidden = at::randn({7, 16}), teacher_hidden = at::randn({7, 16});
  at::Tensor targets = at::randint(53, {7}, at::kLong), grad = at::randn({7}), entropy_grad = at::randn({7});
};

LinearWeights head_of(const at::Tensor& weight, Communicator* ranks, at::Tensor grad) {
  LinearWeights head;
  const TensorPart part = ranks == nullptr ? TensorPart{} : TensorPart{ranks->rank(), ranks->size()};
  const int64_t begin = part.begin(weight.size(0)), length = part.length(weight.size(0));
  head.load(weight.narrow(0, begin, length).contiguous(), {}, at::kFloat, /*trainable=*/true);
  head.weight_grad = grad.narrow(0, begin, length);
  head.output_ranks = ranks;
  head.first_output = begin;
  head.total_outputs = weight.size(0);
  return head;
}

struct Answer {
  at::Tensor values, entropies, hidden_grad, weight_grad;  // the last: zero where other ranks' part is
};

Answer logprobs_of(const Problem& problem, Communicator* ranks) {
  Answer answer;
  answer.weight_grad = at::zeros_like(problem.weight);
  const LinearWeights head = head_of(problem.weight, ranks, answer.weight_grad);
  const at::Tensor hidden = problem.hidden.clone().requires_grad_(true);
  const TokenLogprobs result = token_logprobs(hidden, problem.targets, head, 0.7, /*entropy_gradient=*/true);
  (result.logprobs * problem.grad + result.entropies * problem.entropy_grad).sum().backward();
  answer.values = result.logprobs.detach();
  answer.entropies = result.entropies.detach();
  answer.hidden_grad = hidden.grad();
  return answer;
}

Answer divergence_of(const Problem& problem, Communicator* ranks) {
  Answer answer;
  answer.weight_grad = at::zeros_like(problem.weight);
  const LinearWeights head = head_of(problem.weight, ranks, answer.weight_grad);
  const LinearWeights teacher = head_of(problem.teacher, ranks, at::zeros_like(problem.teacher));
  const at::Tensor hidden = problem.hidden.clone().requires_grad_(true);
  const auto kl = [](const at::Tensor& student, const at::Tensor& of_teacher) {
    const at::Tensor log_p = of_teacher.log_softmax(-1);
    return (log_p.exp() * (log_p - student.log_softmax(-1))).sum(-1);
  };
  const at::Tensor result = logits_loss(hidden, head, problem.teacher_hidden, teacher, kl);
  (result * problem.grad).sum().backward();
  answer.values = answer.entropies = result.detach();
  answer.hidden_grad = hidden.grad();
  return answer;
}

void expect_as_whole(Answer (*compute)(const Problem&, Communicator*)) {
  at::manual_seed(1);  // LibTorch's own seed is another in each process
  const Problem problem;
  const Answer whole = compute(problem, nullptr);
  on_ranks(3, [&](Communicator& comm) {
    const Answer part = compute(problem, &comm);
    EXPECT_TRUE(at::allclose(part.values, whole.values, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(part.entropies, whole.entropies, 1e-5, 1e-5));
    EXPECT_TRUE(at::allclose(part.hidden_grad, whole.hidden_grad, 1e-5, 1e-5));
    comm.all_reduce("weights' gradients", part.weight_grad).wait();
    EXPECT_TRUE(at::allclose(part.weight_grad, whole.weight_grad, 1e-5, 1e-5));
  });
}

TEST(VocabularyParallel, LogprobsAndTheirGradientsAreThoseOfTheWholeHead) { expect_as_whole(logprobs_of); }
TEST(VocabularyParallel, DivergencesAndTheirGradientsAreThoseOfTheWholeHeads) { expect_as_whole(divergence_of); }

}  // namespace
}  // namespace temper
