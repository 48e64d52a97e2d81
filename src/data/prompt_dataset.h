// Prompts and SFT examples from a JSONL file (or from generated problems), tokenised at loading. Immutable afterwards.
// A line is {"prompt": "…"} or {"messages": [{"role", "content"}…]} or {"prompt_token_ids": […]}, with "answer" and any
// other fields; for SFT also "completion" (without it the answer is learned), or messages that end with the
// assistant's, or {"text": "…"} alone, which is learned as a whole. An answer with "####" in it (GSM8K) is compared by
// what follows; SFT learns the whole of it. Errors name file and line (from 1). Lines may end in CR LF, the file may
// begin with a byte order mark; an empty line is an error.
#pragma once
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

#include "core/rollout_types.h"
#include "data/prompt_encoder.h"
#include "data/task.h"

namespace temper {

struct DatasetOptions {
  std::string prompt_field = "prompt";
  std::string answer_field = "answer";
  std::string completion_field = "completion";
  std::string
      prompt_template;  // {field} stands for that field of the line; {{ and }} are braces; empty: the prompt as it is
  int64_t max_prompt_length = 0;  // tokens; 0: no limit
  bool skip_long = false;         // longer prompts: left out, counted and warned of (training), or else a ConfigError
};

class PromptDataset {
 public:
  static PromptDataset load(const std::string& path, const DatasetOptions& options, const PromptEncoder& encoder);
  static PromptDataset of_problems(const std::string& name, const std::vector<Problem>& problems,
                                   const PromptEncoder& encoder);

  int64_t size() const { return static_cast<int64_t>(prompts_.size()); }
  const Prompt& at(int64_t index) const {
    return prompts_.at(static_cast<size_t>(index));
  }  // serial = line = line in the file, from 0
  const std::vector<Prompt>& prompts() const { return prompts_; }
  const std::string& name() const { return name_; }  // the file's stem or the task's: NAME of eval/NAME/accuracy
  const std::string& hash() const { return hash_; }  // XXH3-128 of the content
  int64_t num_skipped() const { return num_skipped_; }
  // {training, held out} by a hash of the prompt's text (held_out.h): the same prompt falls on the same side in every
  // file.
  std::pair<PromptDataset, PromptDataset> split(double held_out_share) const;

 private:
  std::string name_, hash_;
  std::vector<Prompt> prompts_;
  int64_t num_skipped_ = 0;
};

class SftDataset {
 public:
  // Examples with a prompt beyond options.max_prompt_length, or beyond max_length tokens in all (what a micro-batch
  // holds; 0: no limit), are left out, counted and warned of.
  static SftDataset load(const std::string& path, const DatasetOptions& options, const PromptEncoder& encoder,
                         int64_t max_length = 0);
  static SftDataset of_problems(const std::string& name, const std::vector<Problem>& problems,
                                const PromptEncoder& encoder);

  int64_t size() const { return static_cast<int64_t>(examples_.size()); }
  const SftExample& at(int64_t index) const { return examples_.at(static_cast<size_t>(index)); }
  const std::vector<std::string>& prompt_texts() const { return prompt_texts_; }  // [size()] for count_overlap
  const std::string& hash() const { return hash_; }
  int64_t num_skipped() const { return num_skipped_; }

 private:
  std::string hash_;
  std::vector<SftExample> examples_;
  std::vector<std::string> prompt_texts_;
  int64_t num_skipped_ = 0;
};

// A generated problem as the model sees it; serial and line stay 0.
Prompt prompt_of(const Problem& problem, const PromptEncoder& encoder);

}  // namespace temper
