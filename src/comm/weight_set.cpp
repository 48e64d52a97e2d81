#include "comm/weight_set.h"

#include <algorithm>
#include <cstring>
#include <new>
#include <span>
#include <utility>

#include "comm/weight_delta.h"
#include "core/error.h"

namespace temper {
namespace {

constexpr int64_t kAlignment = 64;

class HeapMemory : public WeightMemory {
 public:
  explicit HeapMemory(int64_t size_bytes)
      : data_(static_cast<std::byte*>(
            ::operator new (static_cast<size_t>(size_bytes), std::align_val_t{static_cast<size_t>(kAlignment)}))) {}
  ~HeapMemory() override { ::operator delete (data_, std::align_val_t{static_cast<size_t>(kAlignment)}); }
  std::byte* data() override { return data_; }
  bool is_shared() const override { return false; }

 private:
  std::byte* data_;
};

// A rank's part and where it stands among the manifests.
struct PlacedPart {
  size_t rank = 0;
  const WeightPart* part = nullptr;
};

void check_cover(const std::string& name, std::vector<PlacedPart> parts) {
  std::sort(parts.begin(), parts.end(), [](const PlacedPart& a, const PlacedPart& b) {
    return std::pair(a.part->begin, a.part->end) < std::pair(b.part->begin, b.part->end);
  });
  int64_t covered = 0;
  for (const auto& [rank, part] : parts) {
    if (part->begin != covered)
      throw FormatError("weights {}: rank {} has elements {} to {}, the ranks before it end at {}: {}.", name, rank,
                        part->begin, part->end, covered, part->begin < covered ? "two of one" : "some are missing");
    covered = part->end;
  }
  const int64_t elements = num_weight_elements(parts.front().part->shape);
  if (covered != elements) throw FormatError("weights {}: the ranks have {} of {} elements.", name, covered, elements);
}

}  // namespace

std::unique_ptr<WeightMemory> allocate_weights(int64_t size_bytes) { return std::make_unique<HeapMemory>(size_bytes); }

WeightLayout::WeightLayout(const std::vector<WeightManifest>& manifests, int64_t max_bytes) {
  for (size_t rank = 1; rank < manifests.size(); ++rank)
    if (manifests[rank].epoch != manifests[0].epoch || manifests[rank].version != manifests[0].version)
      throw FormatError("weights of epoch {}, version {} from rank {}, but of epoch {}, version {} from rank 0.",
                        manifests[rank].epoch, manifests[rank].version, rank, manifests[0].epoch, manifests[0].version);
  add_tensors(manifests, max_bytes);
  for (const WeightManifest& manifest : manifests) {
    std::vector<Segment>& segments = segments_.emplace_back();
    int64_t at = 0;
    for (const WeightPart& part : manifest.parts) {
      const int64_t element = element_bytes(part.dtype), size = (part.end - part.begin) * element;
      segments.push_back({at, tensors_.at(part.name).offset + part.begin * element, size});
      at += size;
    }
  }
}

void WeightLayout::add_tensors(const std::vector<WeightManifest>& manifests, int64_t max_bytes) {
  std::map<std::string, std::vector<PlacedPart>> by_name;
  for (size_t rank = 0; rank < manifests.size(); ++rank)
    for (const WeightPart& part : manifests[rank].parts) by_name[part.name].push_back({rank, &part});
  for (const auto& [name, parts] : by_name) {
    const WeightPart& first = *parts.front().part;
    for (const auto& [rank, part] : parts)
      if (part->dtype != first.dtype || part->shape != first.shape)
        throw FormatError("weights {}: {} [{}] at rank {}, {} [{}] at rank {}.", name, weight_dtype_name(part->dtype),
                          join(part->shape), rank, weight_dtype_name(first.dtype), join(first.shape),
                          parts.front().rank);
    check_cover(name, parts);
    const int64_t size = num_weight_elements(first.shape) * element_bytes(first.dtype);
    if (size > max_bytes - size_bytes_)
      throw FormatError("weights {}: with its {} bytes the weights are more than the {} allowed.", name, size,
                        max_bytes);
    tensors_[name] = {first.dtype, first.shape, size_bytes_, size};
    size_bytes_ += (size + kAlignment - 1) / kAlignment * kAlignment;
  }
}

WeightSet::WeightSet(std::vector<WeightManifest> manifests, WeightLayout layout, std::unique_ptr<WeightMemory> memory)
    : manifests_(std::move(manifests)),
      layout_(std::move(layout)),
      memory_(std::move(memory)),
      next_chunk_(manifests_.size()) {
  for (const WeightManifest& manifest : manifests_) {
    num_chunks_.push_back(manifest.num_chunks());
    stream_bytes_.push_back(manifest.stream_bytes());
    checksums_.push_back(std::make_unique<Xxh3Stream>());
  }
}

void WeightSet::place(size_t rank, const WeightChunk& chunk, WeightSet* base) {
  const WeightManifest& manifest = manifests_[rank];
  int64_t& next = next_chunk_[rank];
  if (chunk.index != next || is_complete(rank))
    throw FormatError("chunk {} of {} came, {} was due.", chunk.index, num_chunks_[rank], next);
  const int64_t begin = next * manifest.chunk_bytes;
  const int64_t size = std::min(manifest.chunk_bytes, stream_bytes_[rank] - begin);
  std::string_view bytes = chunk.bytes;
  std::string changed;
  if (chunk.encoding == ChunkEncoding::kDelta) {
    if (manifest.base < 0 || base == nullptr) throw FormatError("chunk {} is a delta from nothing.", chunk.index);
    changed = base->gather(rank, begin, size);
    apply_delta(bytes, std::as_writable_bytes(std::span<char>(changed)));
    bytes = changed;
  }
  if (static_cast<int64_t>(bytes.size()) != size || xxh3_64(bytes) != chunk.checksum)
    throw FormatError("chunk {} has {} bytes of {}, checksum {} for {}.", chunk.index, bytes.size(), size,
                      hex64(xxh3_64(bytes)), hex64(chunk.checksum));
  scatter(rank, begin, bytes);
  ++next;
  if (is_complete(rank)) check(rank, *checksums_[rank]);
}

void WeightSet::check(size_t rank) const {
  Xxh3Stream checksum;
  for (const WeightLayout::Segment& segment : layout_.segments(rank))
    checksum.update(memory_->data() + segment.offset, static_cast<size_t>(segment.size_bytes));
  check(rank, checksum);
}

void WeightSet::check(size_t rank, const Xxh3Stream& checksum) const {
  if (checksum.digest_hex() != manifests_[rank].checksum)
    throw FormatError("the whole has checksum {}, announced was {}.", checksum.digest_hex(), manifests_[rank].checksum);
}

FetchedWeights WeightSet::view() const {
  FetchedWeights weights{.epoch = manifests_.front().epoch, .version = manifests_.front().version, .tensors = {}};
  for (const auto& [name, tensor] : layout_.tensors())
    weights.tensors[name] = {
        tensor.dtype,
        tensor.shape,
        {reinterpret_cast<const char*>(memory_->data()) + tensor.offset, static_cast<size_t>(tensor.size_bytes)}};
  return weights;
}

namespace {

// Calls visit(bytes of memory, position in the chunk, size) for each piece of [begin, begin + size) of a stream.
template <class Visit>
void for_each_piece(const std::vector<WeightLayout::Segment>& segments, int64_t begin, int64_t size, Visit visit) {
  auto segment = std::upper_bound(segments.begin(), segments.end(), begin, [](int64_t at, const auto& candidate) {
    return at < candidate.stream_begin + candidate.size_bytes;
  });
  for (int64_t done = 0; done < size; ++segment) {
    const int64_t inside = begin + done - segment->stream_begin;
    const int64_t piece = std::min(size - done, segment->size_bytes - inside);
    visit(segment->offset + inside, static_cast<size_t>(done), static_cast<size_t>(piece));
    done += piece;
  }
}

}  // namespace

std::string WeightSet::gather(size_t rank, int64_t stream_begin, int64_t size_bytes) const {
  std::string bytes(static_cast<size_t>(size_bytes), '\0');
  for_each_piece(layout_.segments(rank), stream_begin, size_bytes, [&](int64_t offset, size_t at, size_t size) {
    std::memcpy(bytes.data() + at, memory_->data() + offset, size);
  });
  return bytes;
}

void WeightSet::scatter(size_t rank, int64_t stream_begin, std::string_view bytes) {
  for_each_piece(layout_.segments(rank), stream_begin, static_cast<int64_t>(bytes.size()),
                 [&](int64_t offset, size_t at, size_t size) {
                   std::memcpy(memory_->data() + offset, bytes.data() + at, size);
                   checksums_[rank]->update(memory_->data() + offset, size);  // while it is in the cache
                 });
}

}  // namespace temper
