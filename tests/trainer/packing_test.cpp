#include "trainer/packing.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <numeric>

#include "core/rng.h"
#include "model/initialize.h"
#include "trainer/trainer_model.h"

namespace temper {
namespace {

LoadedModel tiny_model() {
  ModelInit init;
  init.family = "qwen3";
  init.hidden_size = 64;
  init.num_layers = 2;
  init.num_kv_heads = 2;
  init.max_position_embeddings = 64;
  LoadedModel model;
  model.config = new_model_config(init, {97, {}, {}, {}});
  model.parameters = FlatParameters(model.config);
  initialize_parameters(model.config, 5, model.parameters);
  model.parameters.flat().mul_(5);  // far from uniform predictions
  return model;
}

// Groups of 3, 1 and 4 completions with lengths from 1 on.
StepBatch make_batch() {
  SplitMix64 random(11);
  const auto tokens = [&](int64_t count) {
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < count; ++i) ids.push_back(static_cast<int32_t>(random.in_range(0, 96)));
    return ids;
  };
  std::vector<RolloutGroup> groups;
  for (const int64_t size : {3, 1, 4}) {
    RolloutGroup group;
    group.prompt.serial = static_cast<int64_t>(groups.size());
    group.prompt.token_ids = tokens(5 + size);
    for (int64_t i = 0; i < size; ++i) {
      Completion completion;
      completion.token_ids = tokens(1 + 3 * i);
      group.completions.push_back(completion);
    }
    groups.push_back(group);
  }
  return build_step_batch(std::move(groups), {});
}

std::vector<int64_t> all_of(const StepBatch& batch) {
  std::vector<int64_t> all(batch.sequences.size());
  std::iota(all.begin(), all.end(), 0);
  return all;
}

struct Passed {
  at::Tensor logprobs;   // [N] in the batch's order
  at::Tensor gradients;  // flat
};

// The gradient of a weighted sum of all log-probabilities.
Passed run(const StepBatch& batch, const std::vector<MicroBatch>& micro_batches) {
  const TrainerModel policy = TrainerModel::trainable(weights_of(tiny_model()), at::kFloat);
  const std::vector<int64_t> offsets = batch.loss.offsets();
  const at::Tensor weights = at::arange(1, batch.num_completion_tokens + 1).to(at::kFloat).cos();
  Passed passed;
  passed.logprobs = at::zeros({batch.num_completion_tokens});
  for (const MicroBatch& micro : micro_batches) {
    std::vector<at::Tensor> parts;
    for (const int64_t i : micro.completions) parts.push_back(weights.slice(0, offsets[i], offsets[i + 1]));
    const at::Tensor logprobs = policy.logprobs(policy.hidden(micro), micro, 1.3).logprobs;
    (logprobs * at::cat(parts)).sum().backward();
    int64_t from = 0;
    for (const int64_t i : micro.completions) {
      const int64_t length = batch.loss.lengths[i];
      passed.logprobs.slice(0, offsets[i], offsets[i + 1]).copy_(logprobs.detach().slice(0, from, from + length));
      from += length;
    }
  }
  passed.gradients = policy.gradients().flat().clone();
  return passed;
}

double relative_difference(const at::Tensor& a, const at::Tensor& b) {
  return ((a - b).norm() / b.norm()).item<double>();
}

TEST(Packing, SharedPromptsGiveTheGradientsOfRepeatedOnes) {
  const StepBatch batch = make_batch();
  std::vector<MicroBatch> alone;
  for (const int64_t i : all_of(batch)) alone.push_back(pack(batch, {i}));
  const Passed repeated = run(batch, alone);
  const Passed shared = run(batch, {pack(batch, all_of(batch))});
  EXPECT_LE(relative_difference(shared.logprobs, repeated.logprobs), 1e-6);
  EXPECT_LE(relative_difference(shared.gradients, repeated.gradients), 1e-5);
}

TEST(Packing, GradientsDoNotDependOnTheTokenBudget) {
  const StepBatch batch = make_batch();
  const Passed whole = run(batch, pack_micro_batches(batch, all_of(batch), {.max_tokens = 10000}));
  for (const int64_t budget : {1, 12, 20, 33, 50}) {
    const auto micro_batches = pack_micro_batches(batch, all_of(batch), {.max_tokens = budget});
    EXPECT_LE(relative_difference(run(batch, micro_batches).gradients, whole.gradients), 1e-5) << "budget " << budget;
    std::vector<int64_t> seen;
    for (const MicroBatch& micro : micro_batches) {
      seen.insert(seen.end(), micro.completions.begin(), micro.completions.end());
      if (micro.completions.size() > 1) EXPECT_LE(micro.packed.token_ids.numel(), std::max<int64_t>(budget, 12));
    }
    std::sort(seen.begin(), seen.end());
    EXPECT_EQ(seen, all_of(batch));
  }
}

TEST(Packing, LaysEachPromptOnceAndPointsTargetsAtTheRowBefore) {
  RolloutGroup group;
  group.prompt.token_ids = {7, 8};
  group.completions.resize(2);
  group.completions[0].token_ids = {10, 11, 12};
  group.completions[1].token_ids = {20};
  const StepBatch batch = build_step_batch({group}, {});
  const MicroBatch micro = pack(batch, {0, 1});
  const auto equals = [](const at::Tensor& got, std::vector<int64_t> wanted) {
    return at::equal(got, at::tensor(wanted, at::kLong));
  };
  EXPECT_TRUE(equals(micro.packed.token_ids, {7, 8, 10, 11}));
  EXPECT_TRUE(equals(micro.packed.positions, {0, 1, 2, 3}));
  EXPECT_TRUE(equals(micro.packed.rows, {1, 2, 3, 1}));
  EXPECT_TRUE(equals(micro.packed.targets, {10, 11, 12, 20}));
  ASSERT_EQ(micro.packed.segments.size(), 2u);  // the second completion has no row of its own
  EXPECT_EQ(micro.packed.segments[1].prefix_end, 2);
}

TEST(Packing, MicroBatchesAreBalanced) {
  std::vector<RolloutGroup> groups(8);
  for (size_t g = 0; g < groups.size(); ++g) {
    groups[g].prompt.serial = static_cast<int64_t>(g);
    groups[g].prompt.token_ids.assign(10, 1);
    groups[g].completions.resize(1);
    groups[g].completions[0].token_ids.assign(g % 2 == 0 ? 91 : 11, 2);
  }
  const StepBatch batch = build_step_batch(std::move(groups), {});
  const auto micro_batches = pack_micro_batches(batch, all_of(batch), {.max_tokens = 250});
  ASSERT_EQ(micro_batches.size(), 2u);
  for (const MicroBatch& micro : micro_batches) EXPECT_EQ(micro.packed.token_ids.numel(), 240);
}

TEST(StepBatch, FailedCompletionsLeaveTheirGroup) {
  std::vector<RolloutGroup> groups(2);
  for (size_t g = 0; g < 2; ++g) {
    groups[g].prompt.serial = static_cast<int64_t>(1 - g);  // out of order
    groups[g].prompt.token_ids = {1};
    groups[g].completions.resize(2);
    for (auto& completion : groups[g].completions) {
      completion.token_ids = {2, 3};
      completion.rewards = {static_cast<double>(g)};
    }
  }
  groups[0].completions[0].error = "the reward timed out";
  for (auto& completion : groups[1].completions) completion.error = "the reward timed out";
  const StepBatch batch = build_step_batch(std::move(groups), {1.0});
  EXPECT_EQ(batch.num_failed, 3);
  EXPECT_EQ(batch.num_groups_failed, 1);
  EXPECT_EQ(batch.loss.group_sizes, std::vector<int64_t>{1});
  EXPECT_EQ(batch.sequences.at(0).group, 1);
  EXPECT_EQ(batch.loss.rewards.item<double>(), 0.0);
}

}  // namespace
}  // namespace temper
