// What the ranks of a world save after a step, or after they took in what others saved.
#pragma once
#include <memory>

#include "checkpoint/inspect.h"
#include "checkpoint/writer.h"
#include "tests/checkpoint/fault_file_system.h"
#include "tests/trainer/ranks_fixture.h"
#include "trainer/train_state.h"

namespace temper {

class SavedState {
 public:
  SavedState() : folder_(std::make_unique<TemporaryFolder>()) {}
  const std::string& folder() const { return folder_->path(); }
  std::string path() const { return folder() + "/step_000001"; }
  std::vector<TensorEntry> tensors() const {  // each whole
    FileSystem files;
    return read_tensors(files, path(), "");
  }

 private:
  std::unique_ptr<TemporaryFolder> folder_;
};

// PPO's: policy and critic with their optimisers. from: null, a step is taken.
inline SavedState saved_by(const World& world, Shard shard, const Shape& shape, const SavedState* from = nullptr) {
  SavedState saved;
  on_thread_ranks(world.ranks, {.timeout = std::chrono::seconds(60), .check_agreement = true}, [&](Communicator& comm) {
    const Ranks ranks = Ranks(comm).with_tensor_parallel(world.tensor_parallel).with_replicas(world.replicas);
    const auto store_ranks = comm.split(0, comm.rank());
    Fixture fixture(
        Preset::kPpo, [shard](StageConfig& s) { s.train.shard = shard; }, ranks, at::kCPU, shape);
    TrainLoopParts parts = fixture.parts(
        [&fixture](int64_t first, int64_t count) { return fixture.groups(first, count, 4, first_token_reward); });
    parts.ranks = ranks;
    QuickFileSystem files;
    if (from == nullptr) {
      TrainLoop(parts, {}).step();
    } else {
      const HostState room = HostState::room_for(parts);
      CheckpointStore(files, from->folder(), 2, store_ranks.get()).load_newest([&](const CheckpointHeader&) {
        return room.entries();
      });
      room.put_back();
    }
    CheckpointHeader header;
    header.step = 1;
    CheckpointStore store(files, saved.folder(), 2, store_ranks.get());
    CheckpointWriter writer(store);
    writer.begin({header, HostState::of(parts).entries(), checkpoint_mesh(ranks)});
    writer.finish();
  });
  return saved;
}

}  // namespace temper
