// What does it bring to compute a group's prompt once in training? bench_shared_prefix [MODEL_DIR] [PROMPT]
// [COMPLETION] Forward and backward over 4 groups of 8 completions, prompts laid once a group and laid again for every
// completion, in turn. Without MODEL_DIR a random model of SmolLM2-135M's shape. Prints one JSON object; tokens are
// those of the batch as a reader counts them (each completion with its prompt), the same on both sides.
#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <numeric>
#include <string>

#include "core/clock.h"
#include "core/rng.h"
#include "model/hf_directory.h"
#include "model/initialize.h"
#include "trainer/trainer_model.h"

namespace temper {
namespace {

constexpr int64_t kGroups = 4, kCompletions = 8, kRounds = 5, kMaxTokens = 4096;

ModelWeights random_135m() {
  ModelInit init;
  init.family = "llama";
  init.hidden_size = 576;
  init.intermediate_size = 1536;
  init.num_layers = 30;
  init.num_heads = 9;
  init.num_kv_heads = 3;
  return random_weights(new_model_config(init, {49152, {}, {}, {}}), 1);
}

// share = false: every completion is a group of its own.
StepBatch make_batch(int64_t prompt, int64_t completion, int64_t vocab, bool share) {
  std::vector<RolloutGroup> groups;
  const auto tokens = [&](uint64_t seed, int64_t length) {
    SplitMix64 random(seed);
    std::vector<int32_t> ids;
    for (int64_t i = 0; i < length; ++i) ids.push_back(static_cast<int32_t>(random.in_range(0, vocab - 1)));
    return ids;
  };
  for (int64_t g = 0; g < kGroups; ++g)
    for (int64_t i = 0; i < kCompletions; ++i) {
      if (i == 0 || !share) {
        groups.emplace_back();
        groups.back().prompt.serial = static_cast<int64_t>(groups.size());
        groups.back().prompt.token_ids = tokens(static_cast<uint64_t>(g), prompt);
      }
      groups.back().completions.emplace_back().token_ids =
          tokens(static_cast<uint64_t>(100 + g * kCompletions + i), completion);
    }
  return build_step_batch(std::move(groups), {});
}

double seconds_of_pass(const TrainerModel& model, const StepBatch& batch) {
  std::vector<int64_t> all(batch.sequences.size());
  std::iota(all.begin(), all.end(), 0);
  const Stopwatch watch;
  for (const MicroBatch& micro : pack_micro_batches(batch, all, {.max_tokens = kMaxTokens}))
    model.logprobs(model.hidden(micro), micro, 1.0).logprobs.sum().backward();
  return watch.seconds();
}

int run(int argc, char** argv) {
  const std::string directory = argc > 1 ? argv[1] : "";
  const int64_t prompt = argc > 2 ? std::atoll(argv[2]) : 256, completion = argc > 3 ? std::atoll(argv[3]) : prompt;
  const at::ScalarType compute = cpu_has_bf16() ? at::kBFloat16 : at::kFloat;
  const TrainerModel model =
      TrainerModel::trainable(directory.empty() ? random_135m() : open_model(directory), compute);
  const StepBatch shared = make_batch(prompt, completion, model.config().vocab_size, true);
  const StepBatch repeated = make_batch(prompt, completion, model.config().vocab_size, false);
  seconds_of_pass(model, shared);  // memory and packed weights are warm afterwards
  double best_shared = 1e9, best_repeated = 1e9;
  std::vector<double> ratios;
  for (int64_t round = 0; round < kRounds; ++round) {
    const double a = seconds_of_pass(model, shared), b = seconds_of_pass(model, repeated);
    best_shared = std::min(best_shared, a);
    best_repeated = std::min(best_repeated, b);
    ratios.push_back(b / a);
  }
  std::sort(ratios.begin(), ratios.end());
  const auto tokens = static_cast<double>(kGroups * kCompletions * (prompt + completion));
  std::printf(
      "{\"bench\": \"shared_prefix\", \"threads\": %d, \"prompt_tokens\": %ld, \"completion_tokens\": %ld, "
      "\"group\": %ld, \"shared_tokens_per_s\": %.0f, \"repeated_tokens_per_s\": %.0f, \"median_ratio\": %.2f}\n",
      at::get_num_threads(), prompt, completion, kCompletions, tokens / best_shared, tokens / best_repeated,
      ratios[ratios.size() / 2]);
  return 0;
}

}  // namespace
}  // namespace temper

int main(int argc, char** argv) { return temper::run(argc, argv); }
