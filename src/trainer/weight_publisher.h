// What a trainer rank gives to rollout workers after each step: its share of every tensor of the model that generates,
// in the type that workers compute with. Every rank sees each block's masters while they are all here (trainer_model.h)
// and copies an equal part of them, so that workers fetch from all ranks at once. The train loop's thread.
#pragma once
#include <deque>
#include <string>
#include <vector>

#include "comm/weight_server.h"
#include "model/parameters.h"
#include "trainer/ranks.h"

namespace temper {

class WeightPublisher {
 public:
  // model: the whole model; a value head that it has stays here. dtype: kFloat or kBFloat16. server outlives this.
  WeightPublisher(WeightServer& server, const ModelConfig& model, at::ScalarType dtype, const Ranks& ranks);

  // This rank's share of one block (-1: what lies before and behind the blocks).
  void copy(int64_t block, const FlatParameters& masters);
  // What was copied since the last call is this version; readers can have it when this returns.
  void publish(int64_t epoch, PolicyVersion version);

 private:
  WeightServer& server_;
  ModelConfig model_;
  at::ScalarType dtype_;
  int rank_, num_ranks_;
  std::deque<at::Tensor> copies_;  // the parts' bytes
  std::vector<WeightPart> parts_;
};

}  // namespace temper
