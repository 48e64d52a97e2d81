// Preference pairs for reward models, DPO and IPO, from a JSONL file or from a generated task, tokenised at loading.
// Immutable afterwards. A line is {"prompt": …, "chosen": …, "rejected": …}, all texts or lists of messages, with
// an optional number "margin"; without a prompt, it is what chosen and rejected begin with both. Errors name file and
// line (from 1).
#pragma once
#include <cstdint>
#include <string>
#include <vector>

#include "data/prompt_dataset.h"
#include "data/prompt_encoder.h"
#include "data/task.h"

namespace temper {

struct PreferenceExample {
  SftExample chosen, rejected;  // the same prompt: equal prompt_length, equal tokens before it
  double margin = 0;            // by which the chosen one should win (reward models)
  int64_t line = 0;             // index in the data set
};

class PreferenceDataset {
 public:
  // Pairs with a prompt beyond options.max_prompt_length, or beyond max_length tokens in all (prompt, chosen and
  // rejected lie in one micro-batch with one copy of the prompt; 0: no limit), are left out, counted and warned of.
  static PreferenceDataset load(const std::string& path, const DatasetOptions& options, const PromptEncoder& encoder,
                                int64_t max_length = 0);
  static PreferenceDataset of_pairs(const std::string& name, const std::vector<PreferencePair>& pairs,
                                    const PromptEncoder& encoder);

  int64_t size() const { return static_cast<int64_t>(examples_.size()); }
  const PreferenceExample& at(int64_t index) const { return examples_.at(static_cast<size_t>(index)); }
  const std::vector<std::string>& prompt_texts() const { return prompt_texts_; }  // [size()] for count_overlap
  const std::string& hash() const { return hash_; }
  int64_t num_skipped() const { return num_skipped_; }

 private:
  std::string hash_;
  std::vector<PreferenceExample> examples_;
  std::vector<std::string> prompt_texts_;
  int64_t num_skipped_ = 0;
};

}  // namespace temper
