#include "apps/stage_data.h"

#include <algorithm>
#include <filesystem>

#include "core/error.h"
#include "core/files.h"
#include "data/held_out.h"
#include "data/utf8.h"

namespace temper {
namespace {

constexpr size_t kPairsHeldOut = 20;  // one in so many of a generated task's

DatasetOptions dataset_options(const DataSection& data, bool training) {
  DatasetOptions options;
  options.prompt_field = data.prompt_field;
  options.answer_field = data.answer_field;
  options.completion_field = data.completion_field;
  options.prompt_template = data.prompt_template;
  options.max_prompt_length = data.max_prompt_length;
  options.skip_long = training;
  return options;
}

std::vector<Prompt> first_prompts(const PromptDataset& dataset, int64_t count) {
  std::vector<Prompt> prompts = dataset.prompts();
  if (static_cast<int64_t>(prompts.size()) > count) prompts.resize(static_cast<size_t>(count));
  return prompts;
}

Completion completion_of(const SftExample& example) {
  Completion completion;
  completion.token_ids.assign(example.token_ids.begin() + example.prompt_length, example.token_ids.end());
  completion.mask.assign(example.loss_mask.begin() + example.prompt_length, example.loss_mask.end());
  return completion;
}

RolloutGroup group_of(const SftExample& example) {
  RolloutGroup group;
  group.prompt.line = example.line;
  group.prompt.token_ids.assign(example.token_ids.begin(), example.token_ids.begin() + example.prompt_length);
  group.completions.push_back(completion_of(example));
  return group;
}

RolloutGroup group_of(const PreferenceExample& pair) {
  RolloutGroup group = group_of(pair.chosen);
  group.completions.push_back(completion_of(pair.rejected));
  group.margin = pair.margin;
  return group;
}

template <class Dataset>
std::vector<RolloutGroup> groups_of(const Dataset& dataset) {
  std::vector<RolloutGroup> groups;
  for (int64_t i = 0; i < dataset.size(); ++i) groups.push_back(group_of(dataset.at(i)));
  return groups;
}

}  // namespace

std::optional<Task> make_task(const DataSection& data) {
  if (data.task.empty()) return std::nullopt;
  TaskOptions options;
  options.seed = static_cast<uint64_t>(data.generated.seed);
  options.max_operand = data.generated.max_operand;
  options.num_items = data.generated.num_items;
  options.num_worked = data.generated.num_worked;
  options.worked_error_share = data.generated.worked_error_share;
  options.held_out_share = data.generated.held_out_share;
  return Task::make(data.task, options);
}

std::vector<EvalSet> make_eval_sets(const StageConfig& stage, const PromptEncoder& encoder,
                                    const std::optional<Task>& task) {
  std::vector<EvalSet> sets;
  if (stage.eval.num_prompts == 0) return sets;
  if (!stage.data.eval_path.empty()) {
    const auto dataset = PromptDataset::load(stage.data.eval_path, dataset_options(stage.data, false), encoder);
    sets.push_back({dataset.name(), first_prompts(dataset, stage.eval.num_prompts)});
  } else if (task) {
    for (const ProblemSet& set : task->eval_sets(stage.eval.num_prompts))
      sets.push_back({set.name, PromptDataset::of_problems(set.name, set.problems, encoder).prompts()});
  } else if (stage.data.held_out_share > 0) {
    const auto dataset = PromptDataset::load(stage.data.path, dataset_options(stage.data, false), encoder);
    sets.push_back(
        {dataset.name(), first_prompts(dataset.split(stage.data.held_out_share).second, stage.eval.num_prompts)});
  }
  return sets;
}

std::optional<EvalText> make_eval_text(const std::string& path, const Tokenizer& tokenizer) {
  if (path.empty()) return std::nullopt;
  const std::string text = read_file(path);
  EvalText eval;
  eval.name = std::filesystem::path(path).stem().string();
  eval.token_ids = tokenizer.encode(text, /*parse_special=*/false);
  if (eval.token_ids.size() < 2)
    throw FormatError("{}: eval.bits_per_char_path needs a text of at least two tokens, this one has {}.", path,
                      eval.token_ids.size());
  eval.num_characters =
      count_utf8_characters(text) - count_utf8_characters(tokenizer.token_bytes(eval.token_ids.front()));
  return eval;
}

SamplingParams sampling_params(const StageConfig& stage) {
  SamplingParams sampling;
  sampling.temperature = stage.rollout.temperature;
  sampling.top_k = static_cast<int32_t>(stage.rollout.top_k);
  sampling.top_p = stage.rollout.top_p;
  sampling.min_p = stage.rollout.min_p;
  sampling.max_new_tokens = static_cast<int32_t>(stage.rollout.max_completion_length);
  sampling.stop = stage.rollout.stop;
  sampling.seed = static_cast<uint64_t>(stage.run.seed);
  return sampling;
}

TrainingData::TrainingData(const StageConfig& stage, const PromptEncoder& encoder, const std::optional<Task>& task)
    : stage_(stage), generated_(task.has_value()) {
  const DataSection& data = stage.data;
  const int64_t longest = stage.train.max_tokens_per_micro_batch;
  const auto keep = [&](const auto& dataset) {
    hash_ = dataset.hash();
    keep_examples(groups_of(dataset), dataset.prompt_texts());
    if (!examples_.empty()) return;
    throw ConfigError(
        "data.path = {}: no example is left to train on ({} were longer than data.max_prompt_length = {} or "
        "train.max_tokens_per_micro_batch = {}).",
        data.path, dataset.num_skipped(), data.max_prompt_length, longest);
  };
  if (stage.algo.trains_on_pairs()) {
    keep(task ? PreferenceDataset::of_pairs(task->name(), task->preference_pairs(), encoder)
              : PreferenceDataset::load(data.path, dataset_options(data, true), encoder, longest));
  } else if (!stage.algo.trains_on_rollouts()) {
    keep(task ? SftDataset::of_problems(task->name(), task->worked_problems(), encoder)
              : SftDataset::load(data.path, dataset_options(data, true), encoder, longest));
  } else if (task) {
    prompts_.emplace(*task, encoder);
    hash_ = prompts_->hash();
  } else {
    PromptDataset dataset = PromptDataset::load(data.path, dataset_options(data, true), encoder);
    if (data.held_out_share > 0) dataset = dataset.split(data.held_out_share).first;
    prompts_.emplace(std::move(dataset), static_cast<uint64_t>(stage.run.seed), data.shuffle);
    hash_ = prompts_->hash();
  }
}

void TrainingData::keep_examples(std::vector<RolloutGroup> all, const std::vector<std::string>& texts) {
  // A task's worked problems are none of those that evaluation asks; of its pairs some are kept to compare on.
  const bool pairs = stage_.algo.trains_on_pairs();
  const auto is_out = [&](size_t i) {
    if (generated_) return pairs && i % kPairsHeldOut == kPairsHeldOut - 1;
    return is_held_out(texts[i], stage_.data.held_out_share);
  };
  for (size_t i = 0; i < all.size(); ++i) {
    if (is_out(i)) {
      held_out_.push_back(std::move(all[i]));
      held_out_.back().prompt.serial = static_cast<int64_t>(held_out_.size()) - 1;
    } else {
      examples_.push_back(std::move(all[i]));
      texts_.push_back(texts[i]);
    }
  }
  if (static_cast<int64_t>(held_out_.size()) > stage_.eval.num_prompts)
    held_out_.resize(static_cast<size_t>(stage_.eval.num_prompts));
  if (!examples_.empty())
    order_.emplace(static_cast<int64_t>(examples_.size()), static_cast<uint64_t>(stage_.run.seed), stage_.data.shuffle);
}

RolloutGroup TrainingData::example(int64_t serial) const {
  RolloutGroup group = examples_[static_cast<size_t>(order_->line(serial))];
  group.prompt.serial = serial;
  return group;
}

std::vector<std::string> TrainingData::prompt_texts() const {
  if (generated_) return {};  // held out by a hash
  if (!prompts_) return texts_;
  std::vector<std::string> texts;
  for (const Prompt& prompt : prompts_->dataset()->prompts()) texts.push_back(prompt.text);
  return texts;
}

}  // namespace temper
