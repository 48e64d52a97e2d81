// One version of one trainer rank's weights, kept to be sent: a copy of the bytes in a row, their checksums, and the
// deltas from older versions, encoded as they are first asked for. For weight_server.cpp.
//
// Threads: deltas belong to one thread, all else may be read by any.
#pragma once
#include <cstddef>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "comm/weight_messages.h"

namespace temper {

class WeightVersion {
 public:
  // Copies the parts' bytes. Parts that break publish()'s conditions are an error of the program.
  WeightVersion(int64_t epoch, PolicyVersion version, const std::vector<WeightPart>& parts, int64_t chunk_bytes);

  const WeightManifest& manifest() const { return manifest_; }  // of no request and no base
  int64_t num_chunks() const { return static_cast<int64_t>(chunk_checksums_.size()); }
  std::string_view bytes() const { return {reinterpret_cast<const char*>(bytes_.get()), size_bytes_}; }
  std::string_view chunk(int64_t index) const;
  uint64_t chunk_checksum(int64_t index) const { return chunk_checksums_[static_cast<size_t>(index)]; }

  // The chunk as the difference to an older version's of the same parts; empty where that would not be shorter.
  std::string_view delta(const WeightVersion& base, int64_t index);
  void forget_deltas_from(PolicyVersion base) { deltas_.erase(base); }

 private:
  WeightManifest manifest_;
  size_t size_bytes_ = 0;
  std::unique_ptr<std::byte[]> bytes_;
  std::vector<uint64_t> chunk_checksums_;
  std::map<PolicyVersion, std::vector<std::optional<std::string>>> deltas_;  // by base and chunk; encoded so far
};

}  // namespace temper
