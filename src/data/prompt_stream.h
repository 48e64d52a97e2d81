// The endless stream of training prompts, by running number: a data set passed over in shuffled order, or a task's
// problems. at() depends on the number alone: the cursor that a checkpoint keeps is the next number. Thread-safe.
#pragma once
#include <optional>

#include "data/prompt_dataset.h"
#include "data/shuffle.h"
#include "data/task.h"

namespace temper {

class PromptStream {
 public:
  // ConfigError if the data set is empty.
  PromptStream(PromptDataset dataset, uint64_t seed, bool shuffle);
  PromptStream(Task task, const PromptEncoder& encoder);  // never shuffled: its stream is random already

  Prompt at(int64_t serial) const;
  std::string hash() const;   // identity of the data, for the checkpoint's check
  int64_t pass_size() const;  // prompts a pass; 0: endless
  const PromptDataset* dataset() const { return dataset_ ? &*dataset_ : nullptr; }

 private:
  std::optional<PromptDataset> dataset_;
  std::optional<ShuffleOrder> order_;
  std::optional<Task> task_;
  std::optional<PromptEncoder> encoder_;
};

}  // namespace temper
