// How many evaluation prompts occur in the training data: a run warns of it.
#pragma once
#include <cstdint>
#include <string>
#include <vector>

namespace temper {

// Compares texts with white space at both ends and runs of it inside taken as one blank. Counts evaluation prompts.
int64_t count_overlap(const std::vector<std::string>& eval_prompts, const std::vector<std::string>& train_prompts);

}  // namespace temper
