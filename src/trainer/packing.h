// Cuts a step's completions into micro-batches of about equal work, each laid end to end for one forward pass, a
// group's prompt once (model/packed_sequences.h).
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/packed_sequences.h"
#include "trainer/step_batch.h"

namespace temper {

struct MicroBatch {
  std::vector<int64_t> completions;  // [b] indices in the step's batch, ascending
  PackedSequences packed;
};

struct PackOptions {
  int64_t max_tokens = 0;     // rows a micro-batch
  bool whole_groups = false;  // a group stays in one micro-batch, however long: losses on pairs
  RowOf row_of = RowOf::kPredictor;
};

// Cuts the given completions into micro-batches of at most max_tokens rows each (what is longer alone gets its own),
// with about equal numbers of rows: first-fit decreasing finds how many, then each group goes to the emptiest.
std::vector<MicroBatch> pack_micro_batches(const StepBatch& batch, const std::vector<int64_t>& completions,
                                           const PackOptions& options);

MicroBatch pack(const StepBatch& batch, std::vector<int64_t> completions, RowOf row_of = RowOf::kPredictor);

}  // namespace temper
