// A stage's state on its way to a checkpoint and back: weights, both moments, counters. Draws need no generator's
// state: they depend on seeds and serial numbers alone (core/rng.h). Views, not copies: the policy and the optimiser
// must stay put while a checkpoint is written or read.
#pragma once
#include "algos/algorithm.h"
#include "checkpoint/checkpoint.h"
#include "trainer/adamw.h"
#include "trainer/train_loop.h"
#include "trainer/trainer_model.h"

namespace temper {

// "model/NAME", "optim/exp_avg/NAME", "optim/exp_avg_sq/NAME", NAME as in the safetensors file; of a critic with its
// own backbone also "critic/NAME", "critic_optim/exp_avg/NAME", "critic_optim/exp_avg_sq/NAME".
std::vector<TensorEntry> state_tensors(const TrainLoopParts& parts);

// The blob "trainer": counters, the optimisers' steps, the KL coefficient, as JSON.
std::string save_counters(const TrainCounters& counters, const TrainLoopParts& parts);
// Puts them back. FormatError if the text is not such a blob.
TrainCounters load_counters(const std::string& text, const TrainLoopParts& parts);

}  // namespace temper
