// One copy of the newest weights for all worker processes of a host: files in shared memory that one of them fetches
// and all map read-only. For weight_client.cpp.
//
//   DIR/temper-UID-RUN/         0700; of this user alone
//     users                     each process holds it by flock, shared: whoever gets it whole is alone and cleans up
//     fetch                     held by flock by the process that fetches: a dead one's lock is the kernel's to free
//     incoming                  what is being fetched; gets its name when it is whole and checked, else is never read
//     weights.EPOCH.VERSION     the newest; older ones are removed, and stay for who has them mapped
//
// A file of weights: magic, size and XXH3-64 of the header (three u64), the header (the ranks' manifests), then at the
// next multiple of 4,096 the tensors as WeightLayout has them. Readers check everything against its checksums.
//
// Threads: one.
#pragma once
#include <cstdint>
#include <memory>
#include <optional>
#include <string>
#include <vector>

#include "comm/weight_messages.h"
#include "comm/weight_set.h"
#include "core/rollout_types.h"

namespace temper {

class HostWeights {
 public:
  // dir: of a file system in memory, as /dev/shm; it exists. run_id: letters, digits, '-', '_', '.' (ConfigError
  // else). What processes of this user left behind there that are no more is removed. IoError where the folder is
  // somebody else's or cannot be made.
  HostWeights(const std::string& dir, const std::string& run_id);
  ~HostWeights();  // the last process of the run on this host removes the folder
  HostWeights(const HostWeights&) = delete;
  HostWeights& operator=(const HostWeights&) = delete;

  // The version that is there, if it is of this epoch and newer than that. A file that is not what its checksums say is
  // removed, with a warning, and nothing is what is there.
  std::unique_ptr<WeightSet> find(int64_t epoch, PolicyVersion newer_than, int64_t max_bytes);

  // The right to fetch; false: another process has it.
  bool try_begin();
  // Memory for a version in a file of its own. IoError where shared memory is full. REQUIRES: the right.
  std::unique_ptr<WeightMemory> create(const std::vector<WeightManifest>& manifests, int64_t size_bytes);
  // What the set of that memory holds is whole: others may have it.
  void commit(int64_t epoch, PolicyVersion version);
  void end();  // gives the right back
  // Whoever has the right says that it gets on; a number that changes whenever it has.
  void note_progress();
  int64_t progress() const;

  const std::string& folder() const { return folder_; }

 private:
  bool hold();

  std::string folder_;
  int users_ = -1, fetch_ = -1;  // descriptors
  bool fetching_ = false;
};

// Removes the folders under `dir` that no living process of this user holds. How many there were.
int64_t remove_unused_host_weights(const std::string& dir);

}  // namespace temper
