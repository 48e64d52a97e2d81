// What a stage learns from and what it is held against: prompts, worked examples or preference pairs by serial number,
// evaluation sets and texts. Made from the configuration; immutable afterwards.
#pragma once
#include <optional>
#include <string>
#include <vector>

#include "config/config.h"
#include "data/preference_dataset.h"
#include "data/prompt_stream.h"
#include "data/task.h"
#include "trainer/evaluation.h"

namespace temper {

std::optional<Task> make_task(const DataSection& data);
// Prompts to evaluate on, as [data] and [eval] say.
std::vector<EvalSet> make_eval_sets(const StageConfig& stage, const PromptEncoder& encoder,
                                    const std::optional<Task>& task);
std::optional<EvalText> make_eval_text(const std::string& path, const Tokenizer& tokenizer);
SamplingParams sampling_params(const StageConfig& stage);

class TrainingData {
 public:
  // encoder outlives it. ConfigError where nothing is left to train on.
  TrainingData(const StageConfig& stage, const PromptEncoder& encoder, const std::optional<Task>& task);

  // Stages that train on rollouts: what is asked. The others: the completions that are learned, as a group.
  Prompt prompt(int64_t serial) const { return prompts_->at(serial); }
  RolloutGroup example(int64_t serial) const;

  // Of given completions: those that are held out by data.held_out_share (of a task's pairs, one in twenty).
  const std::vector<RolloutGroup>& held_out() const { return held_out_; }
  std::vector<std::string> prompt_texts() const;  // of a file's training prompts; empty for a generated task
  const std::string& hash() const { return hash_; }

 private:
  void keep_examples(std::vector<RolloutGroup> all, const std::vector<std::string>& texts);

  StageConfig stage_;
  std::string hash_;
  std::optional<PromptStream> prompts_;
  std::vector<RolloutGroup> examples_, held_out_;
  std::vector<std::string> texts_;     // of examples_
  std::optional<ShuffleOrder> order_;  // of examples_
  bool generated_ = false;
};

}  // namespace temper
