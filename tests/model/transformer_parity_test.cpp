// The whole model against transformers: logits, greedy continuations, loss and every gradient of the tiny models that
// tests/support/make_model_fixtures.py made.
#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/csrc/autograd/variable.h>

#include "model/attention.h"
#include "model/hf_directory.h"
#include "model/safetensors.h"
#include "model/token_logprobs.h"
#include "model/transformer.h"
#include "tests/model/tensors.h"

namespace temper {
namespace {

class TransformerParity : public testing::TestWithParam<const char*> {
 protected:
  TransformerParity()
      : folder_(std::string(TEMPER_TEST_DATA) + "/" + GetParam()),
        loaded_(load_model(folder_)),
        expected_(folder_ + "/expected.safetensors"),
        model_(loaded_.config, at::kFloat, /*trainable=*/true),
        gradients_(loaded_.config) {
    model_.load(loaded_.parameters, 0);
    model_.set_gradients(gradients_);
  }

  // Sequences packed one after another → [T, hidden_size].
  at::Tensor hidden_states(const std::vector<at::Tensor>& sequences) const {
    std::vector<AttentionSegment> segments;
    std::vector<at::Tensor> positions;
    int64_t end = 0;
    for (const at::Tensor& tokens : sequences) {
      segments.push_back({end, end + tokens.numel(), end, end});
      positions.push_back(at::arange(tokens.numel(), at::kLong));
      end += tokens.numel();
    }
    const auto attention = [&](int64_t, const at::Tensor& qkv) {
      return packed_attention_qkv(qkv, loaded_.config.num_heads, loaded_.config.num_kv_heads, segments,
                                  model_.attention_scale());
    };
    return model_.hidden_states(at::cat(sequences), at::cat(positions), attention);
  }

  std::string folder_;
  LoadedModel loaded_;
  SafetensorsFile expected_;
  Transformer model_;
  FlatParameters gradients_;
};

TEST_P(TransformerParity, LogitsOfAPackedBatchAreThoseOfEachSequenceAlone) {
  const at::NoGradGuard no_grad;
  const std::vector<at::Tensor> sequences = {expected_.read("tokens.0"), expected_.read("tokens.1")};
  const at::Tensor logits = model_.logits(hidden_states(sequences));
  const int64_t first = sequences[0].numel(), second = sequences[1].numel();
  EXPECT_LT(largest_error(logits.narrow(0, 0, first), expected_.read("logits.0")), 1e-5);
  EXPECT_LT(largest_error(logits.narrow(0, first, second), expected_.read("logits.1")), 1e-5);
}

TEST_P(TransformerParity, GreedyContinuationsAreIdentical) {
  const at::NoGradGuard no_grad;
  for (const char* name : {"greedy.0", "greedy.1"}) {
    const at::Tensor tokens = expected_.read(name);
    const at::Tensor best = model_.logits(hidden_states({tokens})).argmax(1);
    const int64_t count = 12, first = tokens.numel() - count;
    EXPECT_TRUE(at::equal(best.narrow(0, first - 1, count), tokens.narrow(0, first, count))) << name;
  }
}

TEST_P(TransformerParity, LossAndGradientsAreThoseOfAutograd) {
  const std::vector<at::Tensor> sequences = {expected_.read("tokens.0"), expected_.read("tokens.1")};
  const at::Tensor tokens = at::cat(sequences);
  const int64_t first = sequences[0].numel(), second = sequences[1].numel();
  const at::Tensor rows = at::cat({at::arange(first - 1), at::arange(first, first + second - 1)});
  const at::Tensor hidden = hidden_states(sequences).index_select(0, rows);
  const TokenLogprobs logprobs = token_logprobs(hidden, tokens.index_select(0, rows + 1), model_.head(), 1.0);
  const at::Tensor loss = -logprobs.logprobs.mean();
  EXPECT_NEAR(loss.item<double>(), expected_.read("loss").item<double>(), 1e-6);
  loss.backward();
  for (const ParameterSpec& spec : gradients_.specs()) {
    const at::Tensor wanted = expected_.read("grad." + spec.name);
    const double scale = wanted.abs().max().item<double>();
    EXPECT_LT(largest_error(gradients_[spec.name], wanted), 1e-5 * scale + 1e-7) << spec.name << ", largest " << scale;
  }
}

INSTANTIATE_TEST_SUITE_P(Models, TransformerParity,
                         testing::Values("llama", "llama_bias", "qwen2", "qwen2_yarn", "qwen3"),
                         [](const auto& name) { return std::string(name.param); });

}  // namespace
}  // namespace temper
