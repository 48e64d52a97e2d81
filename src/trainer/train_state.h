// A stage's state on its way to a checkpoint and back: weights, both moments, counters. Draws need no generator's
// state: they depend on seeds and serial numbers alone (core/rng.h).
#pragma once
#include "algos/algorithm.h"
#include "checkpoint/checkpoint.h"
#include "trainer/adamw.h"
#include "trainer/train_loop.h"
#include "trainer/trainer_model.h"

namespace temper {

// The whole model's tensors where a checkpoint finds them: of a model on the CPU the memory itself, so that policy and
// optimiser must stay put meanwhile; of one on a GPU, or whose layers ranks share, copies, which put_back() returns
// after a checkpoint was read into them.
class HostState {
 public:
  HostState() = default;
  // To be saved. Where ranks share layers a collective call, and the state is the first rank's alone.
  static HostState of(const TrainLoopParts& parts) { return HostState(parts, /*filled=*/true); }
  // To be read into.
  static HostState room_for(const TrainLoopParts& parts) { return HostState(parts, /*filled=*/false); }

  // "model/NAME", "optim/exp_avg/NAME", "optim/exp_avg_sq/NAME", NAME as in the safetensors file; of a critic with its
  // own backbone also "critic/NAME", "critic_optim/exp_avg/NAME", "critic_optim/exp_avg_sq/NAME".
  const std::vector<TensorEntry>& entries() const { return entries_; }
  void put_back() const;

 private:
  HostState(const TrainLoopParts& parts, bool filled);
  void append(const std::string& group, const FlatParameters& tensors, const ModelConfig& model, bool filled);
  FlatParameters on_host(const FlatParameters& tensors, const ModelConfig& model, bool filled) const;

  struct Copy {
    FlatParameters own, host;
    ModelConfig model;
  };
  Ranks ranks_;
  std::vector<TensorEntry> entries_;
  std::vector<Copy> copies_;
};

// The blob "trainer": counters, the optimisers' steps, the KL coefficient, as JSON.
std::string save_counters(const TrainCounters& counters, const TrainLoopParts& parts);
// Puts them back. FormatError if the text is not such a blob.
TrainCounters load_counters(const std::string& text, const TrainLoopParts& parts);

}  // namespace temper
