// Completions laid end to end for one forward pass. A group's prompt is laid once, and each of its completions attends
// to it: gradients equal those of repeated prompts to rounding, at a fraction of the tokens. A completion's last token
// predicts nothing, so it takes no row.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/attention.h"
#include "trainer/step_batch.h"

namespace temper {

struct MicroBatch {
  std::vector<int64_t> completions;  // [b] indices in the step's batch, ascending
  at::Tensor token_ids;              // [T] int64
  at::Tensor positions;              // [T] int64
  std::vector<AttentionSegment> segments;
  at::Tensor rows;     // [n] int64: the row whose hidden state predicts target i
  at::Tensor targets;  // [n] int64: the completions' tokens, in order
};

// Rows that the completions (of one group each, in order) take together.
int64_t packed_rows(const StepBatch& batch, const std::vector<int64_t>& completions);

// Cuts the given completions into micro-batches of at most max_tokens rows each (one that is longer alone gets its
// own), with about equal numbers of rows: first-fit decreasing finds how many, then each group goes to the emptiest.
std::vector<MicroBatch> pack_micro_batches(const StepBatch& batch, const std::vector<int64_t>& completions,
                                           int64_t max_tokens);

MicroBatch pack(const StepBatch& batch, std::vector<int64_t> completions);

}  // namespace temper
