// Several ranks train as one does: the same losses and weights on the same groups, whatever is trained.
#include "trainer/ranks.h"

#include "core/error.h"
#include "tests/trainer/ranks_fixture.h"
#include "trainer/shared_source.h"

namespace temper {
namespace {

class RanksTrain : public ::testing::TestWithParam<Case> {};

TEST_P(RanksTrain, AsOneDoes) { expect_as_alone(GetParam(), {{2}, {3}, {4}}); }

INSTANTIATE_TEST_SUITE_P(
    Stages, RanksTrain,
    ::testing::Values(
        Case{"sharded_grpo", Preset::kGrpo, shard_the_optimizer},
        Case{"sharded_sft", Preset::kSft, shard_the_optimizer}, Case{"sharded_ppo", Preset::kPpo, shard_the_optimizer},
        Case{"full_grpo", Preset::kGrpo,
             [](StageConfig& s) {
               shard_everything(s);
               s.algo.kl_coef = 0.05;
             }},
        Case{"full_sft", Preset::kSft, shard_everything}, Case{"full_dapo", Preset::kDapo, shard_everything},
        Case{"full_ppo", Preset::kPpo,
             [](StageConfig& s) {
               shard_everything(s);
               s.algo.num_minibatches = 2;
             }},
        Case{"full_ppo_on_one_backbone", Preset::kPpo,
             [](StageConfig& s) {
               shard_everything(s);
               s.critic.shared_backbone = true;
             }},
        Case{"full_dpo", Preset::kDpo, shard_everything},
        Case{"full_sft_with_biases", Preset::kSft, shard_everything, [](ModelInit& init) { init.family = "qwen2"; }},
        Case{"full_reward_model", Preset::kRewardModel, shard_everything},
        Case{"full_distill", Preset::kGkd, shard_everything},
        Case{"full_distill_without_a_tied_head", Preset::kGkd, shard_everything,
             [](ModelInit& init) { init.tie_word_embeddings = false; }},
        Case{"grpo", Preset::kGrpo, [](StageConfig& s) { s.algo.kl_coef = 0.05; }},
        Case{"grpo_in_small_micro_batches", Preset::kGrpo,
             [](StageConfig& s) { s.train.max_tokens_per_micro_batch = 24; }},
        Case{"recomputed", Preset::kGrpo, [](StageConfig& s) { s.train.recompute = true; }},
        Case{"dapo", Preset::kDapo, {}},
        Case{"ppo_with_a_critic", Preset::kPpo,
             [](StageConfig& s) {
               s.algo.kl_coef = 0.05;
               s.algo.num_minibatches = 2;
               s.algo.num_epochs = 2;
               s.optim.learning_rate = 1e-4;  // of four updates a step
             }},
        Case{"ppo_on_one_backbone", Preset::kPpo, [](StageConfig& s) { s.critic.shared_backbone = true; }},
        Case{"distill", Preset::kGkd, {}}, Case{"sft", Preset::kSft, {}}, Case{"dpo", Preset::kDpo, {}},
        Case{"reward_model", Preset::kRewardModel, {}}),
    [](const auto& tested) { return std::string(tested.param.name); });

class ReplicasTrain : public ::testing::TestWithParam<Case> {};

TEST_P(ReplicasTrain, AsOneRankDoes) { expect_as_alone(GetParam(), {{4, 2}, {6, 3}, {6, 2}, {2, 2}}); }

INSTANTIATE_TEST_SUITE_P(Stages, ReplicasTrain,
                         ::testing::Values(Case{"optimizer_grpo", Preset::kGrpo, shard_the_optimizer},
                                           Case{"optimizer_ppo", Preset::kPpo, shard_the_optimizer},
                                           Case{"full_grpo", Preset::kGrpo, shard_everything},
                                           Case{"full_sft", Preset::kSft, shard_everything},
                                           Case{"full_ppo", Preset::kPpo, shard_everything},
                                           Case{"full_dpo", Preset::kDpo, shard_everything}),
                         [](const auto& tested) { return std::string(tested.param.name); });

TEST(Replicas, AreRefusedWhereRanksCannotBeDealtOut) {
  ThreadWorld world(3);
  const auto comm = world.communicator(0);
  try {
    Ranks(*comm).with_replicas(2);
    FAIL() << "3 ranks as 2 replicas";
  } catch (const ConfigError& error) {
    EXPECT_STREQ(error.what(),
                 "train.replicas = 2: 3 ranks cannot be dealt out evenly. Give a divisor of the number of ranks.");
  }
}

TEST(Ranks, RepeatTheSameBits) {
  const auto change = [](StageConfig& s) { s.algo.kl_coef = 0.05; };
  const std::vector<Course> first = train_on({3}, Preset::kGrpo, change), again = train_on({3}, Preset::kGrpo, change);
  EXPECT_TRUE(at::equal(first.front().after, again.front().after));
}

TEST(ShardPlan, CutsEverySegmentAndLeavesNothingOut) {
  const ModelConfig config = tiny_model().config;
  const std::vector<ParameterSpec> layout = parameter_layout(config);
  for (const int num_ranks : {1, 2, 3, 4, 7}) {
    std::vector<int> owners(static_cast<size_t>(flat_size(layout)), 0);
    for (int r = 0; r < num_ranks; ++r) {
      const ShardPlan plan(layout, Shard::kOptimizer, r, num_ranks);
      EXPECT_EQ(plan.num_blocks(), config.num_layers);
      for (const FlatRange& range : plan.owned())
        for (int64_t i = range.begin; i < range.end; ++i) ++owners[static_cast<size_t>(i)];
    }
    EXPECT_TRUE(std::all_of(owners.begin(), owners.end(), [](int count) { return count == 1; })) << num_ranks;
  }
}

TEST(AdamW, HasTheMomentsOfWhatItOwns) {
  on_thread_ranks(3, {.timeout = std::chrono::seconds(60)}, [](Communicator& comm) {
    const LoadedModel model = tiny_model();
    const FlatParameters gradients(model.parameters.specs());
    const std::vector<ParameterSpec>& layout = model.parameters.specs();
    const ShardPlan plan(layout, Shard::kOptimizer, comm.rank(), 3);
    AdamW whole(layout, {}, ShardPlan(layout, Shard::kNone, 0, 1)), sharded(layout, {}, plan);
    const auto step = [&](AdamW& optimizer) {
      gradients.flat().copy_(model.parameters.flat());
      const FlatParameters weights(model.parameters.specs(), model.parameters.flat().clone());
      optimizer.step({{0, weights.flat()}}, {{0, gradients.flat()}}, 1e-2, 1);
      EXPECT_EQ(gradients.flat().count_nonzero().item<int64_t>(), 0);
    };
    step(whole);
    step(sharded);
    const auto expect_same = [&](const std::vector<FlatPart>& parts, const std::vector<FlatPart>& all) {
      ASSERT_EQ(all.size(), 1u);
      ASSERT_EQ(parts.size(), plan.owned().size());
      for (size_t i = 0; i < parts.size(); ++i) {
        EXPECT_EQ(parts[i].begin, plan.owned()[i].begin);
        EXPECT_EQ(parts[i].end(), plan.owned()[i].end);
        EXPECT_TRUE(at::equal(parts[i].elements, all[0].elements.slice(0, parts[i].begin, parts[i].end())));
      }
    };
    expect_same(sharded.exp_avg(), whole.exp_avg());
    expect_same(sharded.exp_avg_sq(), whole.exp_avg_sq());
  });
}

TEST(Ranks, MoreThanThereIsWorkFor) {
  const auto change = [](StageConfig& s) { s.train.num_prompts_per_step = 1; };
  const Course alone = train(Preset::kSft, change, {});
  const Course shared = train_on({3}, Preset::kSft, change).back();
  EXPECT_LE((shared.after - alone.after).norm().item<double>(),
            1e-3 * (alone.after - alone.before).norm().item<double>());
}

TEST(Ranks, AgreeOnALossThatIsNotFinite) {
  ThreadWorld world(3, {.timeout = std::chrono::seconds(60)});
  std::vector<std::string> errors(3);
  std::vector<std::thread> threads;
  for (int r = 0; r < 3; ++r)
    threads.emplace_back([&, r] {
      const auto comm = world.communicator(r);
      Fixture fixture(Preset::kSft);
      // One example's tokens lead through a broken row of the embedding; only the rank that has it sees a NaN.
      fixture.policy->parameters()["model.embed_tokens.weight"][7].fill_(std::nan(""));
      fixture.policy->publish(0);
      TrainLoopParts parts = fixture.parts([&fixture](int64_t first, int64_t count) {
        auto groups = fixture.groups(first, count, 1, first_token_reward);
        for (RolloutGroup& group : groups)
          for (std::vector<int32_t>* ids : {&group.prompt.token_ids, &group.completions[0].token_ids})
            std::replace(ids->begin(), ids->end(), 7, 8);
        groups[0].prompt.token_ids[0] = 7;
        return groups;
      });
      parts.ranks = Ranks(*comm);
      TrainLoop loop(std::move(parts), {});
      try {
        loop.step();
      } catch (const NumericsError& error) {
        errors[static_cast<size_t>(r)] = error.what();
      }
    });
  for (std::thread& thread : threads) thread.join();
  EXPECT_NE(errors[0].find("the loss is"), std::string::npos) << errors[0];
  EXPECT_EQ(errors[1], errors[0]);
  EXPECT_EQ(errors[2], errors[0]);
}

// Gives back each prompt with as many completions as asked, and counts.
class EchoSource : public RolloutSource {
 public:
  void request(std::vector<Prompt> prompts, int num_completions, const SamplingParams&,
               RolloutPurpose purpose) override {
    for (Prompt& prompt : prompts) {
      RolloutGroup group;
      group.prompt = std::move(prompt);
      group.purpose = purpose;
      group.completions.resize(static_cast<size_t>(num_completions));
      groups.push_back(std::move(group));
    }
  }
  std::optional<RolloutGroup> next_group(std::chrono::steady_clock::time_point) override {
    if (groups.empty()) return std::nullopt;
    RolloutGroup group = std::move(groups.back());
    groups.pop_back();
    ++num_generated;
    return group;
  }
  std::vector<RolloutGroup> groups;
  int num_generated = 0;
};

TEST(SharedRolloutSource, EveryRankGetsEveryGroupAndGeneratesItsShare) {
  on_thread_ranks(3, {.timeout = std::chrono::seconds(60)}, [](Communicator& comm) {
    EchoSource own;
    SharedRolloutSource shared(own, Ranks(comm));
    std::vector<Prompt> prompts(10);
    for (int64_t i = 0; i < 10; ++i) prompts[static_cast<size_t>(i)].serial = i;
    shared.request(prompts, 2, {}, RolloutPurpose::kEval);
    std::vector<int64_t> serials;
    const auto deadline = std::chrono::steady_clock::now() + std::chrono::seconds(30);
    while (const auto group = shared.next_group(deadline)) serials.push_back(group->prompt.serial);
    std::sort(serials.begin(), serials.end());
    EXPECT_EQ(serials, (std::vector<int64_t>{0, 1, 2, 3, 4, 5, 6, 7, 8, 9}));
    EXPECT_EQ(own.num_generated, comm.rank() == 0 ? 4 : 3);
  });
}

}  // namespace
}  // namespace temper
