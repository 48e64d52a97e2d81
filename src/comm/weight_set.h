// One version of all weights while it comes in and afterwards: where each rank's stream lies in the whole tensors, the
// memory, and the checks that make it a version. For weight_client.cpp; nothing of it knows sockets.
//
// Threads: ranks may place and check at once, each from a thread of its own; all else by one thread.
#pragma once
#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

#include "comm/weight_client.h"
#include "comm/weight_messages.h"
#include "core/hash.h"

namespace temper {

// Memory for weights, aligned to 64 bytes.
class WeightMemory {
 public:
  virtual ~WeightMemory() = default;
  virtual std::byte* data() = 0;
  virtual bool is_shared() const = 0;  // with other processes: not to be written to once it is whole
};
std::unique_ptr<WeightMemory> allocate_weights(int64_t size_bytes);

// The tensors that ranks' manifests make up, back to back, each at a multiple of 64 bytes, in the order of their names.
class WeightLayout {
 public:
  // One manifest a rank, in the order of ranks. FormatError where they are not of one epoch and version, or their parts
  // do not cover each tensor exactly once, or they are more than max_bytes.
  WeightLayout(const std::vector<WeightManifest>& manifests, int64_t max_bytes);

  struct Tensor {
    WeightDtype dtype = WeightDtype::kF32;
    std::vector<int64_t> shape;
    int64_t offset = 0, size_bytes = 0;
  };
  // A piece of a rank's stream that lies in a row in memory.
  struct Segment {
    int64_t stream_begin = 0, offset = 0, size_bytes = 0;
  };
  const std::map<std::string, Tensor>& tensors() const { return tensors_; }
  const std::vector<Segment>& segments(size_t rank) const { return segments_[rank]; }
  int64_t size_bytes() const { return size_bytes_; }

 private:
  void add_tensors(const std::vector<WeightManifest>& manifests, int64_t max_bytes);

  std::map<std::string, Tensor> tensors_;
  std::vector<std::vector<Segment>> segments_;  // by rank, in the order of the stream
  int64_t size_bytes_ = 0;
};

class WeightSet {
 public:
  // memory: of layout.size_bytes().
  WeightSet(std::vector<WeightManifest> manifests, WeightLayout layout, std::unique_ptr<WeightMemory> memory);

  // Puts the next chunk of a rank where it belongs; base: what its deltas are from, else unused. FormatError where the
  // chunk is not the next one, of another size, or not what its checksum says, or where with the last one the rank's
  // stream, as it came to lie in memory, is not what its manifest says.
  void place(size_t rank, const WeightChunk& chunk, WeightSet* base);
  bool is_complete(size_t rank) const { return next_chunk_[rank] == num_chunks_[rank]; }
  // FormatError where the rank's stream, as it lies in memory now, is not what its manifest says. For memory that
  // another process filled.
  void check(size_t rank) const;

  const std::vector<WeightManifest>& manifests() const { return manifests_; }
  int64_t size_bytes() const { return layout_.size_bytes(); }
  std::unique_ptr<WeightMemory> take_memory() { return std::move(memory_); }  // nothing else may be called then
  FetchedWeights view() const;                                                // as long as this lives

 private:
  std::string gather(size_t rank, int64_t stream_begin, int64_t size_bytes) const;
  void scatter(size_t rank, int64_t stream_begin, std::string_view bytes);
  void check(size_t rank, const Xxh3Stream& checksum) const;

  std::vector<WeightManifest> manifests_;
  WeightLayout layout_;
  std::unique_ptr<WeightMemory> memory_;
  std::vector<int64_t> next_chunk_, num_chunks_, stream_bytes_;  // by rank
  std::vector<std::unique_ptr<Xxh3Stream>> checksums_;           // of what is placed, by rank
};

}  // namespace temper
