#include "rollout/kv_cache.h"

#include <ATen/ATen.h>
#include <sys/mman.h>
#include <unistd.h>

#include "core/error.h"

namespace temper {
namespace {

// Tells the kernel to take back the pages that lie wholly inside a tensor; the next write gets fresh ones.
void give_back_pages(const at::Tensor& tensor) {
  const auto page = static_cast<uintptr_t>(sysconf(_SC_PAGESIZE));
  const auto begin = reinterpret_cast<uintptr_t>(tensor.data_ptr());
  const uintptr_t first = (begin + page - 1) / page * page;
  const uintptr_t last = (begin + tensor.nbytes()) / page * page;
  if (last > first) madvise(reinterpret_cast<void*>(first), last - first, MADV_DONTNEED);
}

}  // namespace

int64_t KvCacheShape::bytes_per_token() const {
  return 2 * num_layers * num_kv_heads * head_dim * static_cast<int64_t>(c10::elementSize(dtype));
}

KvCacheShape kv_cache_shape(const ModelConfig& config, at::ScalarType dtype, int64_t block_size, at::Device device) {
  return {.num_layers = config.num_layers,
          .num_kv_heads = config.num_kv_heads,
          .head_dim = config.head_dim,
          .block_size = block_size,
          .dtype = dtype,
          .device = device};
}

void PagedKvCache::reserve() {
  if (!layers_.empty()) return;
  // PyTorch's deterministic mode fills fresh memory, which would make all of the bound resident.
  at::Context& context = at::globalContext();
  const bool fills = context.deterministicFillUninitializedMemory();
  context.setDeterministicFillUninitializedMemory(false);
  const auto options = at::TensorOptions(shape_.dtype).device(shape_.device);
  for (int64_t i = 0; i < shape_.num_layers; ++i)
    layers_.push_back(make_kv_cache(num_blocks_, shape_.num_kv_heads, shape_.block_size, shape_.head_dim, options));
  context.setDeterministicFillUninitializedMemory(fills);
}

void PagedKvCache::copy(const std::vector<BlockCopy>& copies) {
  if (copies.empty()) return;
  const auto count = static_cast<int64_t>(copies.size());
  at::Tensor from = at::empty({count}, at::kLong), to = at::empty({count}, at::kLong);
  for (int64_t i = 0; i < count; ++i) {
    from.mutable_data_ptr<int64_t>()[i] = copies[static_cast<size_t>(i)].from;
    to.mutable_data_ptr<int64_t>()[i] = copies[static_cast<size_t>(i)].to;
  }
  from = from.to(shape_.device);
  to = to.to(shape_.device);
  for (KvCache& layer : layers_)
    for (at::Tensor* tensor : {&layer.k, &layer.v}) tensor->index_copy_(0, to, tensor->index_select(0, from));
}

void PagedKvCache::release() {
  if (!shape_.device.is_cpu()) {
    layers_.clear();
    return;
  }
  for (const KvCache& layer : layers_) {
    give_back_pages(layer.k);
    give_back_pages(layer.v);
  }
}

}  // namespace temper
