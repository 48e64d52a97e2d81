#include "checkpoint/writer.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <cstring>

#include "core/error.h"

namespace temper {
namespace {

constexpr int64_t kAlignment = 64;        // of a tensor in the staging buffer
constexpr int64_t kPieceBytes = 4 << 20;  // that one thread copies at a time

struct Piece {
  char* to;
  const char* from;
  int64_t size_bytes;
};

}  // namespace

CheckpointWriter::CheckpointWriter(CheckpointStore& store)
    : CheckpointWriter([&store](const CheckpointState& state) { store.save(state); }) {}

CheckpointWriter::CheckpointWriter(Save save) : save_(std::move(save)) {}

void CheckpointWriter::begin(const CheckpointState& state) {
  TEMPER_CHECK(!busy(), "a save is under way");
  state_.header = state.header;
  state_.mesh = state.mesh;
  copy(state.tensors);
  task_.begin([this] { save_(state_); });
}

void CheckpointWriter::copy(const std::vector<TensorEntry>& tensors) {
  const at::NoGradGuard no_grad;
  std::vector<int64_t> offsets;
  int64_t size_bytes = 0;
  for (const TensorEntry& entry : tensors) {
    offsets.push_back(size_bytes);
    size_bytes += (static_cast<int64_t>(entry.tensor.nbytes()) + kAlignment - 1) / kAlignment * kAlignment;
  }
  // Defined even where this rank has nothing to save: ranks beyond the first replica.
  if (!staging_.defined() || staging_bytes() != size_bytes) staging_ = at::empty({size_bytes}, at::kByte);
  state_.tensors.clear();
  std::vector<Piece> pieces;
  for (size_t i = 0; i < tensors.size(); ++i) {
    const at::Tensor& from = tensors[i].tensor;
    const auto nbytes = static_cast<int64_t>(from.nbytes());
    const at::Tensor to = staging_.narrow(0, offsets[i], nbytes).view(from.scalar_type()).view(from.sizes());
    state_.tensors.push_back({tensors[i].name, to, tensors[i].whole_shape, tensors[i].start});
    if (!from.is_cpu() || !from.is_contiguous()) {
      to.copy_(from);
      continue;
    }
    for (int64_t at = 0; at < nbytes; at += kPieceBytes)
      pieces.push_back({static_cast<char*>(to.data_ptr()) + at, static_cast<const char*>(from.const_data_ptr()) + at,
                        std::min(kPieceBytes, nbytes - at)});
  }
  at::parallel_for(0, static_cast<int64_t>(pieces.size()), 1, [&pieces](int64_t begin, int64_t end) {
    for (int64_t i = begin; i < end; ++i) {
      const Piece& piece = pieces[static_cast<size_t>(i)];
      std::memcpy(piece.to, piece.from, static_cast<size_t>(piece.size_bytes));
    }
  });
}

}  // namespace temper
