// A model whose weights lie with their owners, as do the gradients and moments of a trained one (ZeRO-3, Rajbhandari et
// al. 2020, https://arxiv.org/abs/1910.02054). A rank has memory for its own part of each transformer block, and
// buffers for the few blocks that are whole for a while: a block's weights are gathered just before it runs, forward
// and again backward (its inside is recomputed), and its gradients go to their owners as soon as they are there. The
// next block's weights travel while a block is computed, as do the gradients of the one before: two gathered blocks and
// two blocks' gradients at most. What lies before and behind the blocks (embedding, last norm, heads: "block -1") stays
// on every rank in the compute dtype, its gradients are whole during a pass. On whatever device the network is.
//
// A trained model's parts are its f32 masters; a frozen one's are what it computes with.
// Every rank makes the same passes in the same order: one that has no work idles through them.
#pragma once
#include <functional>
#include <map>
#include <memory>
#include <utility>
#include <vector>

#include "model/transformer.h"
#include "trainer/ranks.h"
#include "trainer/shard_plan.h"

namespace temper {

class ShardedWeights {
 public:
  // A block (or -1), and parameters that contain its own.
  using Visit = std::function<void(int64_t block, const FlatParameters& parameters)>;

  // The network's own configuration says the layout; it outlives this. `read` fills one block after the other, each
  // whole, of which this rank keeps its part. Splits a communicator off.
  ShardedWeights(const Ranks& ranks, Transformer& network, bool is_trained, const Visit& read);
  ShardedWeights(const ShardedWeights&) = delete;
  ShardedWeights& operator=(const ShardedWeights&) = delete;

  // This rank's parts, by their place in the flat buffer. Of a frozen model: the blocks', no gradients.
  std::vector<FlatPart> weights() const { return parts_of(&Own::weights); }
  std::vector<FlatPart> gradients() const { return parts_of(&Own::gradients); }

  // The masters as they are now become what is computed with; `copy` (or nobody) sees each block's. Trained models.
  void publish(PolicyVersion version, const Visit& copy);
  // Every block's masters, whole, one after the other. Trained models.
  void visit(const Visit& visit);

  // After a backward pass: the gradients outside the blocks go to their owners; all are with them when this returns.
  void end_pass();
  // The communication of a forward pass, or of its backward, without the computation.
  void idle_forward();
  void idle_backward();

  // Seconds spent waiting for other ranks since the last call.
  double take_wait_s() { return std::exchange(wait_s_, 0); }

 private:
  // This rank's part of a segment of the plan.
  struct Own {
    FlatRange range;
    at::Tensor weights, gradients;  // undefined: none
  };
  // Of a block, whole, and on its way.
  struct Whole {
    FlatParameters parameters;
    std::vector<CommHandle> sent;
  };
  // A segment of the plan as it lies in a block's parameters; the ends are two.
  struct Piece {
    size_t segment;
    FlatRange place;
  };

  std::vector<Piece> pieces_of(int64_t block) const;
  at::Tensor own_part(const Piece& piece, const FlatParameters& whole) const;
  FlatParameters make_room(int64_t block);
  void take_back(FlatParameters& room);
  std::vector<FlatPart> parts_of(at::Tensor Own::*which) const;

  // Visits the block's weights, or (empty) lets them go by.
  void acquire(int64_t block, int64_t next, const Visit& visit);
  void start_gather(int64_t block);
  void begin_gradients(int64_t block);
  void reduce(int64_t block);
  void finish_reduction(int64_t block);
  void wait_for(std::vector<CommHandle>& sent);

  std::unique_ptr<Communicator> communicator_;  // its own: several models' passes may interleave
  Ranks ranks_;
  Transformer& network_;
  ShardPlan plan_;
  at::TensorOptions options_;
  std::vector<std::vector<ParameterSpec>> layouts_;          // by block, the ends first: asked for at every pass
  std::vector<Own> own_;                                     // by segment
  std::map<int64_t, Whole> gathering_, summing_, reducing_;  // by block: gradients are summed here, then reduced
  std::vector<at::Tensor> spare_;                            // rooms of blocks, to be used again in this step
  double wait_s_ = 0;
};

}  // namespace temper
