// Tensor parallelism (Megatron-LM, Shoeybi et al. 2019, https://arxiv.org/abs/1909.08053): the ranks of a group share
// every layer. Each holds some heads' rows of q, k and v, some rows of gate and up, the columns of o and down that
// belong to these, and some of the vocabulary's rows of embedding and head; norms, o's and down's biases and a value
// head are on all of them. So a rank's part is a smaller model of the same family: a configuration, a layout and flat
// buffers like any other's. Here is which rows and columns those are, and the way from the whole to the parts and back.
#pragma once
#include <cstdint>
#include <optional>
#include <string_view>
#include <vector>

#include "comm/communicator.h"
#include "model/model_config.h"
#include "model/parameters.h"

namespace temper {

struct TensorPart {
  int rank = 0, size = 1;
  // Of `total` rows or columns these are the part's: [begin, end). Parts differ by one at most.
  int64_t begin(int64_t total) const { return total * rank / size; }
  int64_t end(int64_t total) const { return total * (rank + 1) / size; }
  int64_t length(int64_t total) const { return end(total) - begin(total); }
  at::Tensor of(const at::Tensor& whole, int64_t dimension) const {
    return whole.narrow(dimension, begin(whole.size(dimension)), length(whole.size(dimension)));
  }
};

// The dimension of a parameter that is split; none: every rank has all of it.
std::optional<int64_t> split_dimension(std::string_view name);

// ConfigError with the numbers where so many ranks cannot share the model. `what` says which one it is: "the model".
void check_tensor_parallel(const ModelConfig& whole, int64_t num_ranks, std::string_view what);

// The part as a model of its own. Its vocab_size, num_heads, num_kv_heads and intermediate_size are the part's.
// (read_parameters() of model_weights.h fills one.)
ModelConfig part_config(const ModelConfig& whole, const TensorPart& part);

// Layout of one block alone, or (block -1) of what lies before and behind the blocks; names as in the whole.
std::vector<ParameterSpec> segment_layout(const ModelConfig& config, int64_t block);

// A collective call: of the whole model's parameters those in `layout`, put together on `device` from the ranks' parts
// (each its own `part`, which contains these names).
FlatParameters join_parts(const std::vector<ParameterSpec>& layout, const FlatParameters& part, Communicator& ranks,
                          at::Device device);

}  // namespace temper
