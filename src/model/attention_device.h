// Attention on a GPU: LibTorch's flash kernels over sequences of different lengths laid end to end (Dao 2023,
// https://arxiv.org/abs/2307.08691). A row's keys are gathered into one run, the shared prefix first. bf16 only; what
// the kernels do not take is left to the plain implementation. The layers of one pass ask for the same layout: the last
// one is kept, a thread.
#pragma once
#include <ATen/core/Tensor.h>

#include <vector>

#include "model/attention.h"

namespace temper::device {

// Whether the flash kernels take these queries.
bool takes(const at::Tensor& q);

// As temper::packed_attention, differentiable. Gradients of shared rows are summed in f32.
at::Tensor packed_attention(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                            const std::vector<AttentionSegment>& segments, double scale);

// As temper::paged_attention, without gradient.
void paged_attention(const at::Tensor& q, const KvCache& cache, const std::vector<PagedSequence>& sequences,
                     double scale, at::Tensor& out);

// Which rows of queries and of keys each sequence takes, for tests: lengths as running sums, rows by index.
struct RaggedLayout {
  at::Tensor query_rows, key_rows;  // int64, on the device; undefined: all rows in order
  at::Tensor query_ends, key_ends;  // [sequences + 1] int32, from 0
  int64_t max_queries = 0, max_keys = 0;
};
RaggedLayout layout_of(const std::vector<AttentionSegment>& segments, int64_t num_rows, at::Device device);
RaggedLayout layout_of(const std::vector<PagedSequence>& sequences, int64_t num_rows, int64_t block_size,
                       at::Device device);

}  // namespace temper::device
