// Weights on their way from the trainer's ranks to the rollout workers, as both ends of the wire name them. Bytes and
// shapes alone: no tensors of torch, so that nothing here needs more than the standard library.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace temper {

enum class WeightDtype : uint8_t { kF32, kBf16, kF16, kInt8 };
constexpr WeightDtype kLastWeightDtype = WeightDtype::kInt8;
int64_t element_bytes(WeightDtype dtype);
const char* weight_dtype_name(WeightDtype dtype);  // "f32"

// What one rank holds of one tensor: elements [begin, end) of it in row-major order. A rank that holds the whole tensor
// says so with [0, product of the shape); of a tensor that several ranks hold alike, one alone publishes it.
struct WeightPart {
  std::string name;
  WeightDtype dtype = WeightDtype::kF32;
  std::vector<int64_t> shape;  // of the whole tensor; empty: one number
  int64_t begin = 0, end = 0;  // elements
  std::string_view bytes;      // of these elements, little-endian
};

}  // namespace temper
