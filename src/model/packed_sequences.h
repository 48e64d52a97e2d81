// Sequences laid end to end for one forward pass of packed_attention. The prompt of a group is laid once and each of
// its completions attends to it: log-probabilities and gradients equal those of repeated prompts to rounding, at a
// fraction of the tokens. Used for training and by the reward model.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <span>
#include <vector>

#include "model/attention.h"

namespace temper {

// Which row of the batch speaks for a completion's token: the one that predicts it (log-probabilities, a critic's
// value before the token), or its own (a reward model's value after it).
enum class RowOf { kPredictor, kToken };

struct PackedSequences {
  at::Tensor token_ids;  // [T] int64
  at::Tensor positions;  // [T] int64
  std::vector<AttentionSegment> segments;
  at::Tensor rows;     // [n] int64: the row of target i, as RowOf says
  at::Tensor targets;  // [n] int64: the completions' tokens, in order
};

class SequencePacker {
 public:
  explicit SequencePacker(RowOf row_of) : row_of_(row_of) {}
  // REQUIRES: the prompt has a token.
  void begin_group(std::span<const int32_t> prompt);
  // A completion of the group begun last. With kPredictor its last token predicts nothing and takes no row.
  void add(std::span<const int32_t> completion);
  PackedSequences finish();

 private:
  RowOf row_of_;
  std::vector<int64_t> ids_, positions_, rows_, targets_;
  std::vector<AttentionSegment> segments_;
  int64_t prompt_begin_ = 0, prompt_end_ = 0;
};

}  // namespace temper
