#include "data/prompt_stream.h"

#include "core/error.h"

namespace temper {

PromptStream::PromptStream(PromptDataset dataset, uint64_t seed, bool shuffle) : dataset_(std::move(dataset)) {
  if (dataset_->size() == 0) {
    throw ConfigError(
        "{}: no prompt to train on ({} left out as longer than data.max_prompt_length). Raise data.max_prompt_length "
        "or "
        "give other data with data.path.",
        dataset_->name(), dataset_->num_skipped());
  }
  order_.emplace(dataset_->size(), seed, shuffle);
}

PromptStream::PromptStream(Task task, const PromptEncoder& encoder) : task_(std::move(task)), encoder_(encoder) {}

Prompt PromptStream::at(int64_t serial) const {
  Prompt prompt;
  if (dataset_) {
    prompt = dataset_->at(order_->line(serial));
  } else {
    prompt = prompt_of(task_->problem(serial), *encoder_);
    prompt.line = serial;
  }
  prompt.serial = serial;
  return prompt;
}

std::string PromptStream::hash() const { return dataset_ ? dataset_->hash() : task_->hash(); }
int64_t PromptStream::pass_size() const { return dataset_ ? dataset_->size() : 0; }

}  // namespace temper
