// Everything a stage needs, made from its configuration: model, tokenizer, data, engine and rewards, reference,
// optimiser, algorithm, checkpoints; wired, run, exported. Apps' half of a stage: the trainer never sees engine or
// files.
#pragma once
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "apps/run_directory.h"
#include "checkpoint/checkpoint.h"
#include "config/config.h"
#include "data/prompt_stream.h"
#include "data/tokenizer.h"
#include "rollout/engine.h"
#include "rollout/inline_source.h"
#include "rollout/reward.h"
#include "trainer/stage.h"

namespace temper {

// kAuto becomes bf16 where the CPU multiplies it, else f32.
at::ScalarType compute_dtype(Dtype dtype);

// A model directory (or [model] init) with its tokenizer and chat template.
struct ModelSource {
  LoadedModel model;
  std::unique_ptr<Tokenizer> tokenizer;
  std::optional<ChatTemplate> chat;
};
ModelSource load_model_source(const std::string& directory);
ModelSource make_new_model(const ModelInit& init, int64_t seed);

std::optional<Task> make_task(const DataSection& data);
// Prompts to evaluate on, as [data] and [eval] say.
std::vector<EvalSet> make_eval_sets(const StageConfig& stage, const PromptEncoder& encoder,
                                    const std::optional<Task>& task);
std::optional<EvalText> make_eval_text(const std::string& path, const Tokenizer& tokenizer);
SamplingParams sampling_params(const StageConfig& stage);

// Engine, rewards and the source over a model, for training, evaluation and `temper eval`.
class RolloutStack {
 public:
  RolloutStack(const Transformer& model, const Tokenizer& tokenizer, const StageConfig& stage,
               const std::optional<Task>& task);
  RolloutSource& source() { return source_; }
  double take_scoring_s() { return source_.take_scoring_s(); }
  std::vector<std::string> reward_names() const;

 private:
  std::vector<std::unique_ptr<Reward>> rewards_;
  Engine engine_;
  InlineRolloutSource source_;
};

class StageSession {
 public:
  // start: directory of the model to start from; empty: [model] init. reference_start: the model at the stage's start,
  // the default reference, which is the same directory also on resume.
  StageSession(const StageConfig& stage, const std::string& start, RunDirectory& run, const std::string& config_toml,
               PolicyVersion first_version);
  ~StageSession();

  // Takes the newest verified checkpoint of this stage (or the given one). Nothing: starts at step 0.
  std::optional<int64_t> resume(const std::string& checkpoint);
  StageOutcome run();

  // Writes an HF directory in f32, or in the given dtype.
  void export_model(const std::string& path, at::ScalarType dtype) const;

 private:
  struct Parts;
  std::unique_ptr<Parts> parts_;
};

}  // namespace temper
