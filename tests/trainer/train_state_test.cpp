// A stage's state goes through checkpoints from any world of ranks to any other, and stays the same to the last bit.
#include "trainer/train_state.h"

#include "checkpoint/folder.h"
#include "tests/trainer/saved_state.h"

namespace temper {
namespace {

struct Place {
  World world;
  Shard shard;
};

void expect_same_tensors(const std::vector<TensorEntry>& saved, const std::vector<TensorEntry>& expected,
                         const std::string& where) {
  ASSERT_EQ(saved.size(), expected.size());
  for (size_t i = 0; i < saved.size(); ++i) {
    EXPECT_EQ(saved[i].name, expected[i].name) << where;
    EXPECT_TRUE(at::equal(saved[i].tensor, expected[i].tensor)) << saved[i].name << ", " << where;
  }
}

TEST(TrainState, GoesFromAnyWorldOfRanksToAnyOther) {
  const Shape shape = [](ModelInit& init) {
    init.family = "qwen2";  // with biases
    init.num_heads = 4;
  };
  const SavedState first = saved_by({}, Shard::kNone, shape);
  const std::vector<TensorEntry> expected = first.tensors();
  ASSERT_EQ(expected.front().name, "model/model.embed_tokens.weight");
  ASSERT_EQ(expected.size() % 3, 0u);  // a weight and its two moments
  SavedState last;
  const SavedState* from = &first;
  for (const Place& place : std::vector<Place>{{{2}, Shard::kNone},
                                               {{3}, Shard::kFull},
                                               {{5}, Shard::kOptimizer},
                                               {{8}, Shard::kFull},
                                               {{4, 2}, Shard::kFull},
                                               {{6, 2}, Shard::kOptimizer},
                                               {{4, 1, 2}, Shard::kFull},
                                               {{4, 1, 4}, Shard::kNone},
                                               {{8, 2, 2}, Shard::kOptimizer},
                                               {{2, 1, 2}, Shard::kNone},
                                               {{1}, Shard::kNone}}) {
    SavedState next = saved_by(place.world, place.shard, shape, from);
    expect_same_tensors(next.tensors(), expected,
                        format("{} ranks, {} replicas, {} to a layer", place.world.ranks, place.world.replicas,
                               place.world.tensor_parallel));
    // Each rank of the first replica writes.
    FileSystem files;
    EXPECT_EQ(open_checkpoint_folder(files, next.path()).files.size(),
              static_cast<size_t>(place.world.ranks / place.world.replicas) + 1);
    last = std::move(next);
    from = &last;
  }
}

}  // namespace
}  // namespace temper
