#include "apps/bench_trainer.h"

#include "core/rng.h"
#include "trainer/step_metrics.h"

namespace temper {
namespace {

// Random tokens, all but the first to be learned; the same for a serial number wherever it is made.
RolloutGroup make_example(int64_t serial, const BenchWorkload& work, int64_t vocab) {
  SplitMix64 random(static_cast<uint64_t>(serial));
  const auto token = [&] { return static_cast<int32_t>(random.in_range(0, vocab - 1)); };
  RolloutGroup group;
  group.prompt.serial = serial;
  group.prompt.token_ids = {token()};
  group.completions.resize(1);
  Completion& completion = group.completions.front();
  for (int64_t i = 1; i < work.sequence_tokens; ++i) completion.token_ids.push_back(token());
  completion.mask.assign(completion.token_ids.size(), 1);
  return group;
}

}  // namespace

StageConfig bench_stage(const BenchWorkload& work) {
  StageConfig config;
  config.name = "bench";
  config.algo = algo_preset(Preset::kSft);
  config.algo.whiten_advantages = config.algo.whitens();
  config.train.num_prompts_per_step = work.num_sequences();
  config.train.max_steps = 1 << 20;
  config.train.max_tokens_per_micro_batch = work.micro_batch_tokens;
  return config;
}

BenchTrainer::BenchTrainer(const ModelWeights& model, const ComputeType& type, const StageConfig& config,
                           const BenchWorkload& work, const Ranks& ranks)
    : config_(config),
      policy_(TrainerModel::trainable(model, type.compute, config.train.shard, ranks, type.device)),
      optimizer_(policy_.layout(), {}, policy_.shard_plan(config.train.shard, ranks), type.device),
      algorithm_(make_algorithm(config_.algo, {})) {
  policy_.set_recompute(config_.train.recompute);
  parts_.config = &config_;
  parts_.policy = &policy_;
  parts_.algorithm = algorithm_.get();
  parts_.optimizer = &optimizer_;
  parts_.ranks = ranks;
  parts_.peak_flops = measure_peak_flops(policy_.config(), type.compute, type.device);
  parts_.take_groups = [work, vocab = policy_.config().vocab_size](int64_t first, int64_t count) {
    std::vector<RolloutGroup> groups;
    for (int64_t serial = first; serial < first + count; ++serial) groups.push_back(make_example(serial, work, vocab));
    return groups;
  };
  loop_.emplace(parts_, TrainCounters{});
}

}  // namespace temper
