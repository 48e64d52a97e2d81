// A stage's state on its way to a checkpoint and back: weights, both moments, counters. Draws need no generator's
// state: they depend on seeds and serial numbers alone (core/rng.h).
#pragma once
#include "algos/algorithm.h"
#include "checkpoint/checkpoint.h"
#include "trainer/adamw.h"
#include "trainer/train_loop.h"
#include "trainer/trainer_model.h"

namespace temper {

// This rank's part of the whole model's tensors, where a checkpoint finds it: the memory itself, so that policy and
// optimiser must stay put meanwhile. No communication.
class HostState {
 public:
  HostState() = default;
  // To be saved, on the model's device. Each element is one rank's: the first replica's ranks share out what they all
  // hold, and the first of a tensor-parallel group speaks for what its ranks all hold.
  static HostState of(const TrainLoopParts& parts) { return HostState(parts, /*to_be_saved=*/true); }
  // To be read into, on the CPU: all that this rank needs. Where the model is on a GPU copies, which put_back()
  // returns.
  static HostState room_for(const TrainLoopParts& parts) { return HostState(parts, /*to_be_saved=*/false); }

  // "model/NAME", "optim/exp_avg/NAME", "optim/exp_avg_sq/NAME", NAME as in the safetensors file; of a critic with its
  // own backbone also "critic/NAME", "critic_optim/exp_avg/NAME", "critic_optim/exp_avg_sq/NAME". On every rank each
  // name at least once, without elements where nothing of it is here.
  const std::vector<TensorEntry>& entries() const { return entries_; }
  void put_back() const;

 private:
  HostState(const TrainLoopParts& parts, bool to_be_saved);
  void append(const std::string& group, const TrainerModel& model, const std::vector<FlatPart>& parts,
              bool to_be_saved);
  at::Tensor room_on_host(const at::Tensor& elements);

  struct Copy {
    at::Tensor own, host;
  };
  Ranks ranks_;
  std::vector<TensorEntry> entries_;
  std::vector<Copy> copies_;
};

// The ranks that save, for people who look at the checkpoint.
Mesh checkpoint_mesh(const Ranks& ranks);

// The blob "trainer": counters, the optimisers' steps, the KL coefficient, as JSON.
std::string save_counters(const TrainCounters& counters, const TrainLoopParts& parts);
// Puts them back. FormatError if the text is not such a blob.
TrainCounters load_counters(const std::string& text, const TrainLoopParts& parts);

}  // namespace temper
