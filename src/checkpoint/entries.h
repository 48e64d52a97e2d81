// Between the tensors that a rank holds in memory and the records of a checkpoint: what of it to write, what of it to
// read.
#pragma once
#include <string>
#include <vector>

#include "checkpoint/checkpoint.h"
#include "checkpoint/plan.h"

namespace temper {

// The records of the entries' tensors, with the parts as boxes (of no shard yet), and where each box's bytes lie.
struct EntryBoxes {
  std::vector<TensorRecord> tensors;           // in the order in which the entries first name them
  std::vector<std::vector<const char*>> data;  // [tensor][box]
  bool any_box() const;
};
// ConfigError for a name or type that cannot be stored.
EntryBoxes describe_entries(const std::vector<TensorEntry>& entries);

// Both sides must name the same tensors with the same types and shapes (ConfigError); then where each part goes.
std::vector<WantedBox> match_destinations(const std::string& path, const Manifest& manifest,
                                          const std::vector<TensorEntry>& destinations);

}  // namespace temper
