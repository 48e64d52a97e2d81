#include "model/packed_sequences.h"

#include <ATen/ATen.h>

#include "core/error.h"

namespace temper {

void SequencePacker::begin_group(std::span<const int32_t> prompt) {
  TEMPER_CHECK(!prompt.empty(), "a prompt without tokens predicts nothing");
  prompt_begin_ = static_cast<int64_t>(ids_.size());
  ids_.insert(ids_.end(), prompt.begin(), prompt.end());
  prompt_end_ = static_cast<int64_t>(ids_.size());
  for (int64_t p = 0; p < prompt_end_ - prompt_begin_; ++p) positions_.push_back(p);
  segments_.push_back({prompt_begin_, prompt_end_, 0, 0});
}

void SequencePacker::add(std::span<const int32_t> completion) {
  const auto length = static_cast<int64_t>(completion.size());
  const int64_t begin = static_cast<int64_t>(ids_.size());
  const int64_t end = begin + (row_of_ == RowOf::kToken ? length : length - 1);
  ids_.insert(ids_.end(), completion.begin(), completion.begin() + (end - begin));
  for (int64_t r = begin; r < end; ++r) positions_.push_back(prompt_end_ - prompt_begin_ + r - begin);
  if (end > begin) segments_.push_back({begin, end, prompt_begin_, prompt_end_});
  for (int64_t t = 0; t < length; ++t)
    rows_.push_back(row_of_ == RowOf::kToken ? begin + t : t == 0 ? prompt_end_ - 1 : begin + t - 1);
  targets_.insert(targets_.end(), completion.begin(), completion.end());
}

PackedSequences SequencePacker::finish() {
  PackedSequences packed;
  packed.token_ids = at::tensor(ids_, at::kLong);
  packed.positions = at::tensor(positions_, at::kLong);
  packed.segments = std::move(segments_);
  packed.rows = at::tensor(rows_, at::kLong);
  packed.targets = at::tensor(targets_, at::kLong);
  return packed;
}

}  // namespace temper
