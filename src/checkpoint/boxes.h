// A tensor's place in a checkpoint: boxes, each a hyper-rectangle of the tensor stored as contiguous row-major bytes of
// one shard file. Row, column and uneven splits are all lists of boxes.
#pragma once
#include <c10/core/ScalarType.h>

#include <cstdint>
#include <string>
#include <vector>

namespace temper {

struct Box {
  int32_t shard = 0;
  int64_t offset = 0;  // bytes, in the shard file
  std::vector<int64_t> start;
  std::vector<int64_t> size;
};

// Elements [begin, end) of a row-major tensor as boxes, in their order: a part of a row, whole rows, a part of a row,
// each contiguous there (in more dimensions, the same of each row's part). REQUIRES: 0 <= begin <= end <= its elements.
std::vector<Box> boxes_of_range(const std::vector<int64_t>& shape, int64_t begin, int64_t end);

struct TensorRecord {
  std::string name;
  at::ScalarType dtype = at::kFloat;
  std::vector<int64_t> shape;
  std::vector<Box> boxes;  // each element of the tensor in exactly one; none for a tensor without elements
};

// "f32", "bf16", "i64", …
std::string dtype_name(at::ScalarType dtype);  // ConfigError for a type that checkpoints do not hold
bool parse_dtype(const std::string& name, at::ScalarType* dtype);
int64_t dtype_size_bytes(at::ScalarType dtype);

// Product of the dimensions; -1 if it exceeds 2^62.
int64_t num_elements(const std::vector<int64_t>& shape);

constexpr size_t kMaxBoxesPerTensor = 65536;

// What is wrong with the record's boxes ("boxes 0 and 1 overlap"), empty if every element is covered exactly once.
// REQUIRES: num_elements(shape) >= 0.
std::string find_coverage_fault(const TensorRecord& record);

}  // namespace temper
