// Memory of the paged KV cache: one KvCache (model/attention.h) a layer, all with the same block numbers. Memory is
// reserved at first use and becomes resident when blocks are first written, so a generous bound costs nothing;
// release() gives it back between rollout phases. Owned by the engine, one thread.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

#include "model/attention.h"
#include "model/model_config.h"

namespace temper {

struct BlockCopy {
  int32_t from = 0;
  int32_t to = 0;
};

struct KvCacheShape {
  int64_t num_layers = 0;
  int64_t num_kv_heads = 0;
  int64_t head_dim = 0;
  int64_t block_size = 16;  // tokens
  at::ScalarType dtype = at::kFloat;
  at::Device device = at::kCPU;

  int64_t bytes_per_token() const;
  int64_t bytes_per_block() const { return bytes_per_token() * block_size; }
};

KvCacheShape kv_cache_shape(const ModelConfig& config, at::ScalarType dtype, int64_t block_size,
                            at::Device device = at::kCPU);

class PagedKvCache {
 public:
  PagedKvCache(const KvCacheShape& shape, int64_t num_blocks) : shape_(shape), num_blocks_(num_blocks) {}

  KvCache& layer(int64_t index) { return layers_[static_cast<size_t>(index)]; }
  const KvCacheShape& shape() const { return shape_; }
  int64_t num_blocks() const { return num_blocks_; }

  void reserve();  // before the first use and after release()
  void copy(const std::vector<BlockCopy>& copies);
  // REQUIRES: no block is held.
  void release();

 private:
  KvCacheShape shape_;
  int64_t num_blocks_;
  std::vector<KvCache> layers_;  // empty until reserve()
};

}  // namespace temper
