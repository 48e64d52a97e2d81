// How good the model is: held-out problems through the rollout source, and bits per character of a held-out text (does
// it forget what it knew?). Called before, during and after a stage, and by `temper eval`.
#pragma once
#include <string>
#include <vector>

#include "config/config.h"
#include "core/metric_record.h"
#include "core/rollout_source.h"
#include "trainer/trainer_model.h"

namespace temper {

struct EvalSet {
  std::string name;  // NAME of eval/NAME/accuracy
  std::vector<Prompt> prompts;
};

// A held-out text, tokenised.
struct EvalText {
  std::string name;
  std::vector<int32_t> token_ids;
  int64_t num_characters = 0;  // Unicode code points of the tokens but the first, which nothing predicts
};

// All sets' groups, in the order of the prompts. Draws do not coincide with those of training.
std::vector<std::vector<RolloutGroup>> generate_eval(RolloutSource& source, const std::vector<EvalSet>& sets,
                                                     const EvalSection& eval, const SamplingParams& sampling);

// Adds eval/NAME/accuracy and, for num_completions = k > 1, eval/NAME/avg@k and pass@k. Correct = the first reward
// is 1.
void add_eval_metrics(const EvalSet& set, const std::vector<RolloutGroup>& groups, int64_t num_completions,
                      MetricRecord& record);

// -log2 p of the text by the policy, a character, in windows of window_tokens.
double bits_per_character(const TrainerModel& policy, const EvalText& text, int64_t window_tokens,
                          const Ranks& ranks = {});

}  // namespace temper
