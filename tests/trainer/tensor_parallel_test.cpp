// Ranks that share every layer train as one rank does: every family, kind of head and sharding mode; checkpoints know
// nothing of it.
#include "model/tensor_parallel.h"

#include "checkpoint/checkpoint.h"
#include "core/error.h"
#include "tests/trainer/ranks_fixture.h"
#include "tests/trainer/saved_state.h"
#include "trainer/train_state.h"

namespace temper {
namespace {

// Six heads over three key/value heads, so that 3 ranks can share a layer; 53 tokens, so that nobody can evenly.
Shape six_heads(const char* family, bool tied) {
  return [family, tied](ModelInit& init) {
    init.family = family;
    init.hidden_size = 48;
    init.num_heads = 6;
    init.num_kv_heads = 3;
    init.intermediate_size = 64;
    init.tie_word_embeddings = tied;
  };
}
Shape four_heads(const char* family, bool tied) {
  return [family, tied](ModelInit& init) {
    init.family = family;
    init.num_heads = 8;
    init.num_kv_heads = 4;
    init.tie_word_embeddings = tied;
  };
}
Change with_kl(const Change& more = {}) {
  return [more](StageConfig& s) {
    s.algo.kl_coef = 0.05;
    s.optim.learning_rate = 1e-4;  // ratios to the behaviour policy and k3 are exponentials: they blow rounding up
    if (more) more(s);
  };
}

class TensorParallelTrains : public ::testing::TestWithParam<Case> {};

// 2 ranks to a layer, and two such groups.
TEST_P(TensorParallelTrains, AsOneDoes) { expect_as_alone(GetParam(), {{2, 1, 2}, {4, 1, 2}}); }

INSTANTIATE_TEST_SUITE_P(
    Stages, TensorParallelTrains,
    ::testing::Values(Case{"llama_sft", Preset::kSft, {}, four_heads("llama", false)},
                      Case{"llama_grpo", Preset::kGrpo, with_kl(), four_heads("llama", true)},
                      Case{"qwen2_sft", Preset::kSft, {}, four_heads("qwen2", true)},
                      Case{"qwen2_grpo", Preset::kGrpo, with_kl(), four_heads("qwen2", false)},
                      Case{"qwen3_sft", Preset::kSft, {}, four_heads("qwen3", false)},
                      Case{"qwen3_grpo", Preset::kGrpo, with_kl(), four_heads("qwen3", true)},
                      Case{"qwen3_recomputed", Preset::kGrpo, with_kl([](StageConfig& s) { s.train.recompute = true; }),
                           four_heads("qwen3", true)},
                      Case{"ppo_with_a_critic", Preset::kPpo, with_kl(), four_heads("qwen3", false)},
                      Case{"ppo_on_one_backbone", Preset::kPpo, [](StageConfig& s) { s.critic.shared_backbone = true; },
                           four_heads("llama", true)},
                      Case{"entropy_bonus", Preset::kGrpo, [](StageConfig& s) { s.algo.entropy_coef = 0.01; },
                           four_heads("llama", false)},
                      Case{"distill", Preset::kGkd, {}, four_heads("llama", false)},
                      Case{"dpo", Preset::kDpo, {}, four_heads("qwen2", true)},
                      Case{"reward_model", Preset::kRewardModel, {}, four_heads("llama", true)},
                      Case{"sharded_grpo", Preset::kGrpo, with_kl(shard_the_optimizer), four_heads("qwen3", true)},
                      Case{"sharded_ppo", Preset::kPpo, shard_the_optimizer, four_heads("llama", false)},
                      Case{"full_sft", Preset::kSft, shard_everything, four_heads("qwen3", true)},
                      Case{"full_grpo", Preset::kGrpo, with_kl(shard_everything), four_heads("qwen2", false)},
                      Case{"full_ppo", Preset::kPpo, shard_everything, four_heads("llama", true)}),
    [](const auto& tested) { return std::string(tested.param.name); });

TEST(TensorParallel, ThreeOrFourRanksShareALayer) {
  expect_as_alone({"llama", Preset::kSft, {}, six_heads("llama", false)}, {{3, 1, 3}});
  expect_as_alone({"qwen3", Preset::kGrpo, with_kl(shard_everything), six_heads("qwen3", true)}, {{6, 1, 3}});
  expect_as_alone({"qwen2", Preset::kGrpo, with_kl(), four_heads("qwen2", true)}, {{4, 1, 4}});
}

TEST(TensorParallel, GoesWithReplicas) {
  expect_as_alone({"optimizer", Preset::kGrpo, with_kl(shard_the_optimizer), four_heads("qwen3", true)}, {{8, 2, 2}});
  expect_as_alone({"full", Preset::kSft, shard_everything, four_heads("qwen2", false)}, {{8, 2, 2}});
}

std::string refusal(int num_ranks, int64_t tensor_parallel) {
  ThreadWorld world(num_ranks);
  const auto comm = world.communicator(0);
  try {
    Ranks(*comm).with_tensor_parallel(tensor_parallel);
  } catch (const ConfigError& error) {
    return error.what();
  }
  return "none";
}

TEST(TensorParallel, RefusesRanksThatCannotBeGrouped) {
  EXPECT_EQ(refusal(3, 2),
            "train.tensor_parallel = 2: 3 ranks cannot be grouped so. Start a multiple of 2 (train.ranks), or give a "
            "divisor.");
  EXPECT_NE(refusal(1, 2).find("1 rank cannot"), std::string::npos);
  EXPECT_THROW(Ranks().with_tensor_parallel(2), ConfigError);
}

// After one step the first moments are a tenth of the (clipped) gradients: those of every parameter, policy's and
// critic's.
TEST(TensorParallel, EveryParametersGradientIsThatOfOneRank) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    const std::vector<TensorEntry> alone = saved_by({}, Shard::kNone, four_heads(family, false)).tensors();
    const std::vector<TensorEntry> shared = saved_by({2, 1, 2}, Shard::kNone, four_heads(family, false)).tensors();
    ASSERT_EQ(shared.size(), alone.size());
    for (size_t i = 0; i < alone.size(); ++i) {
      if (alone[i].name.find("exp_avg/") == std::string::npos) continue;
      const double size = alone[i].tensor.norm().item<double>();
      EXPECT_LE((shared[i].tensor - alone[i].tensor).norm().item<double>(), 1e-4 * size + 1e-9) << alone[i].name;
    }
  }
}

// Rollouts compute with the whole model: their log-probabilities are training's up to rounding.
TEST(TensorParallel, RolloutsHaveTheWholeModel) {
  for (const Shard shard : {Shard::kNone, Shard::kFull}) {
    on_thread_ranks(4, {.timeout = std::chrono::seconds(60)}, [&](Communicator& comm) {
      const LoadedModel whole = tiny_model(5, four_heads("qwen3", true));
      const Ranks ranks = Ranks(comm).with_tensor_parallel(2);
      TrainerModel model = TrainerModel::trainable(weights_of(whole), at::kFloat, shard, ranks);
      EXPECT_TRUE(model.needs_separate_rollouts());
      model.separate_rollouts(at::kFloat, WeightFormat::kCompute);
      model.publish(3);
      EXPECT_EQ(model.rollout_network().version(), 3);
      const TrainerModel expected = TrainerModel::frozen(weights_of(whole), at::kFloat);
      const at::Tensor hidden = at::randn({5, 32}, at::kFloat);
      EXPECT_TRUE(at::equal(model.rollout_network().logits(hidden), expected.network().logits(hidden)));
    });
  }
}

}  // namespace
}  // namespace temper
