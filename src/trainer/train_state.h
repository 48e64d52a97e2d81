// A stage's state on its way to a checkpoint and back: weights, both moments, counters. Draws need no generator's
// state: they depend on seeds and serial numbers alone (core/rng.h). Views, not copies: the policy and the optimiser
// must stay put while a checkpoint is written or read.
#pragma once
#include "algos/algorithm.h"
#include "checkpoint/checkpoint.h"
#include "trainer/adamw.h"
#include "trainer/policy.h"
#include "trainer/train_loop.h"

namespace temper {

// "model/NAME", "optim/exp_avg/NAME", "optim/exp_avg_sq/NAME", NAME as in the safetensors file.
std::vector<TensorEntry> state_tensors(const Policy& policy, const AdamW& optimizer);

// The blob "trainer": counters, the optimiser's steps, the KL coefficient, as JSON.
std::string save_counters(const TrainCounters& counters, const AdamW& optimizer, const Algorithm& algorithm);
// FormatError if the text is not such a blob.
TrainCounters load_counters(const std::string& text, AdamW& optimizer, Algorithm& algorithm);

}  // namespace temper
