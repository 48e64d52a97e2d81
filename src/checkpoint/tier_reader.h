// The newest checkpoint that is whole and verified, from whatever holds it: several tiers, several nodes' own disks.
// Each file is read where it is good; a file that a rank needs and does not have comes over the communicator from one
// that has it. All ranks call together.
#pragma once
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "checkpoint/agreement.h"
#include "checkpoint/checkpoint.h"
#include "checkpoint/nodes.h"

namespace temper {

// A folder of step_NNNNNN folders, as this rank sees it.
struct TierFolder {
  std::string name;  // "ram", "local", "durable"
  std::string directory;
};

class TierReader {
 public:
  // tiers: the fastest first. nodes: which ranks share what is fetched into `scratch`, a folder on the node's disk;
  // null: each rank fetches for itself.
  TierReader(FileSystem& files, std::vector<TierFolder> tiers, std::string scratch, const NodeLayout* nodes,
             const Agreement& ranks);

  // Nothing: no tier has any checkpoint. FormatError if there are some and none verifies. The log says which was taken,
  // and why not the newer ones. IoError where a tier cannot be listed and the others hold nothing.
  std::optional<LoadedCheckpoint> load_newest(const ChooseDestinations& destinations);
  // The same of this step alone.
  std::optional<LoadedCheckpoint> load_step(int64_t step, const ChooseDestinations& destinations);

 private:
  struct Copy;       // of a checkpoint: one folder, seen by one rank
  struct Candidate;  // one checkpoint with all its copies
  struct Source;     // of one file for one rank
  class Attempt;     // to load one checkpoint

  std::vector<Candidate> find_candidates();
  std::optional<LoadedCheckpoint> load_from(const std::vector<Candidate>& candidates,
                                            const ChooseDestinations& destinations);
  std::string find_own();

  FileSystem& files_;
  std::vector<TierFolder> tiers_;
  std::string scratch_;
  const NodeLayout* nodes_;
  const Agreement& ranks_;
  std::string list_failure_;  // of a tier that could not be listed
};

}  // namespace temper
