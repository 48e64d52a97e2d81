// Causal attention with grouped query heads, the two ways the model uses it: packed (training, differentiable) and
// paged (the rollout engine). Called by the layers, from one thread; the CPU kernels share the work out with
// at::parallel_for. Both paths read keys in tiles of 64 positions counted from position 0 of each sequence and do the
// same arithmetic in f32 in the same order for a row, whatever its neighbours, the chunking, the sharing of prefixes or
// the number of threads: in one dtype and on one machine, the engine's and the trainer's forward agree bit for bit. CPU
// tensors in f32 and bf16 take our kernels, bf16 on a GPU LibTorch's flash kernels (attention_device.h); everything
// else takes the plain ATen implementation of the same maths.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <vector>

namespace temper {

// One sequence of the packed batch; all numbers are rows of the batch. Own rows of different segments are disjoint.
// Row r of [begin, end) attends to [prefix_begin, prefix_end) and to [begin, r]; its position is prefix length + r -
// begin. A group's prompt is one segment without a prefix; each completion names the prompt's rows as its prefix. The
// rows of a prefix hold positions 0, 1, ...: a prefix has no prefix itself.
struct AttentionSegment {
  int64_t begin = 0, end = 0;
  int64_t prefix_begin = 0, prefix_end = 0;  // empty: begin == end
};

// q [T, H, D], k and v [T, KV, D] -> [T, H, D] in q's dtype; KV divides H. Views with strides are fine as long as the
// last dimension is contiguous. Rows of no segment give zeros and get no gradient. The backward keeps q, k, v, the
// output and one f32 a row and head; dk and dv of shared rows are summed in the order of the segments.
at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale);

// The same on the fused product qkv [T, H + 2 KV, D] (heads of q, then of k, then of v): one gradient tensor, no
// slicing.
at::Tensor packed_attention_qkv(const at::Tensor& qkv, int64_t num_heads, int64_t num_kv_heads,
                                const std::vector<AttentionSegment>& segments, double scale);

// Keys and values of one layer in blocks of block_size tokens (a multiple of 16), cut into panels of 16 tokens. A
// token's slot is block * block_size + offset in the block; one token takes 2 * KV * D elements and nothing more. On a
// GPU the same shapes are views of rows [slots, KV, D].
struct KvCache {
  at::Tensor
      k;  // [num_blocks, KV, block_size / 16, D, 16]: a panel is transposed, so that scores of 16 keys are one vector
  at::Tensor v;  // [num_blocks, KV, block_size / 16, 16, D]
  int64_t num_blocks() const { return k.size(0); }
  int64_t num_kv_heads() const { return k.size(1); }
  int64_t block_size() const { return k.size(2) * 16; }
  int64_t head_dim() const { return k.size(3); }
  // [slots, KV, D]. REQUIRES: not on the CPU.
  at::Tensor k_rows() const;
  at::Tensor v_rows() const;
};

// Throws ConfigError when block_size is not a positive multiple of 16. The memory is not initialised: nothing reads a
// slot before store_kv wrote it.
KvCache make_kv_cache(int64_t num_blocks, int64_t num_kv_heads, int64_t block_size, int64_t head_dim,
                      const at::TensorOptions& options);

// Writes k and v [T, KV, D] (f32 or bf16, rounded to the cache's dtype) of token t to slots[t] (int64 [T]; on the CPU,
// or where the cache is).
void store_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, KvCache& cache);

// One sequence of an engine step. Its query rows are the last num_new positions of the context.
struct PagedSequence {
  const int32_t* blocks = nullptr;  // block table, ceil(context_length / block_size) entries
  int64_t context_length = 0;       // tokens in the cache, those of this step included (store_kv goes first)
  int64_t num_new = 0;              // query rows of this step
  int64_t row_begin = 0;            // first of them in q and out
};

// q [T, H, D] -> out [T, H, D] (same dtype as q, last dimension contiguous), rows of the sequences only. Sequences that
// follow each other and begin with the same blocks (the completions of a group) read those blocks once.
void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out);

// Plain ATen, any device and floating dtype; softmax in at least f32. What the kernels are tested against.
namespace reference {
at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale);
void store_kv(const at::Tensor& k, const at::Tensor& v, const at::Tensor& slots, KvCache& cache);
void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out);
}  // namespace reference

}  // namespace temper
