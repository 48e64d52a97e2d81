// Whole models, training and generation on a GPU against the CPU's.
#include "tests/gpu/gpu_test_support.h"
#include "tests/trainer/loop_fixture.h"
#include "trainer/train_state.h"

namespace temper {
namespace {

using TrainingOnGpu = OnGpu;

LoadedModel family_model(const std::string& family) {
  ModelInit init;
  init.family = family;
  init.hidden_size = 64;
  init.num_layers = 3;
  init.num_heads = 4;
  init.num_kv_heads = 2;
  init.head_dim = 16;
  init.max_position_embeddings = 128;
  init.tie_word_embeddings = family != "qwen2";
  LoadedModel model;
  model.config = new_model_config(init, {300, {}, {}, {}});
  model.parameters = FlatParameters(model.config);
  initialize_parameters(model.config, 3, model.parameters);
  model.parameters.flat().mul_(3);
  return model;
}

at::Tensor logits_of(const LoadedModel& loaded, at::ScalarType compute, at::Device device) {
  const at::NoGradGuard no_grad;
  Transformer model(loaded.config, compute, false, WeightFormat::kCompute, device);
  model.load(loaded.parameters, 0);
  const at::Tensor ids = at::arange(50, at::kLong) * 5 + 1;
  const auto attention = [&](int64_t, const at::Tensor& qkv) {
    return packed_attention_qkv(qkv, 4, 2, {{0, 20, 0, 0}, {20, 50, 0, 20}}, model.attention_scale());
  };
  const at::Tensor positions = at::arange(50, at::kLong);
  return model.logits(model.hidden_states(ids, positions, attention)).cpu();
}

TEST_F(TrainingOnGpu, LogitsOfEveryFamilyAreTheCpus) {
  for (const char* family : {"llama", "qwen2", "qwen3"}) {
    const LoadedModel model = family_model(family);
    const at::Tensor wanted = logits_of(model, at::kFloat, at::kCPU);
    EXPECT_LT(relative_error(logits_of(model, at::kFloat, gpu()), wanted), 1e-5) << family;
    // No further from f32 than bf16 is on the CPU.
    const double of_cpu = cpu_has_bf16() ? relative_error(logits_of(model, at::kBFloat16, at::kCPU), wanted) : 0.1;
    EXPECT_LT(relative_error(logits_of(model, at::kBFloat16, gpu()), wanted), 2 * of_cpu) << family;
  }
}

// Losses of some steps on recorded groups, and the weights after them.
struct Course {
  std::vector<double> losses;
  at::Tensor weights;
};
Course train(Preset preset, at::Device device, bool recompute) {
  Fixture fixture(
      preset, [&](StageConfig& config) { config.train.recompute = recompute; }, {}, device);
  TrainLoop loop = fixture.loop(first_token_reward, preset == Preset::kDpo ? 2 : 4);
  Course course;
  for (int step = 0; step < 6; ++step) course.losses.push_back(*loop.step().record.find("loss"));
  course.weights = fixture.policy->parameters().flat().cpu();
  return course;
}

TEST_F(TrainingOnGpu, TakesTheCpusSteps) {
  const at::Tensor start = tiny_model().parameters.flat();
  for (const Preset preset : {Preset::kGrpo, Preset::kPpo, Preset::kSft, Preset::kGkd, Preset::kDpo, Preset::kGspo})
    for (const bool recompute : {false, true}) {
      const Course here = train(preset, at::kCPU, recompute), there = train(preset, gpu(), recompute);
      const std::string where = std::string(choice_names<Preset>()[static_cast<size_t>(preset)]);
      for (size_t i = 0; i < here.losses.size(); ++i)
        EXPECT_NEAR(there.losses[i], here.losses[i], (i == 0 ? 1e-5 : 1e-3) * std::max(std::abs(here.losses[i]), 0.1))
            << where << i;
      const double moved = (here.weights - start).norm().item<double>();
      EXPECT_LT((there.weights - here.weights).norm().item<double>(), 1e-2 * moved) << where;
    }
}

TEST_F(TrainingOnGpu, StateGoesToTheHostAndBack) {
  Fixture fixture(Preset::kGrpo, {}, {}, gpu());
  TrainLoop loop = fixture.loop(first_token_reward);
  loop.step();
  const TrainLoopParts parts = fixture.parts({});
  const HostState state = HostState::of(parts), room = HostState::room_for(parts);
  ASSERT_EQ(room.entries().size(), state.entries().size());
  const at::Tensor before = fixture.policy->parameters().flat().clone();
  for (size_t i = 0; i < state.entries().size(); ++i) {
    EXPECT_TRUE(room.entries()[i].tensor.is_cpu()) << room.entries()[i].name;
    at::Tensor(room.entries()[i].tensor).copy_(state.entries()[i].tensor);
  }
  loop.step();
  EXPECT_FALSE(at::equal(fixture.policy->parameters().flat(), before));
  room.put_back();
  EXPECT_TRUE(at::equal(fixture.policy->parameters().flat(), before));
}

}  // namespace
}  // namespace temper
