#include "comm/weight_types.h"

namespace temper {

int64_t element_bytes(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kF32:
      return 4;
    case WeightDtype::kBf16:
    case WeightDtype::kF16:
      return 2;
    case WeightDtype::kInt8:
      break;
  }
  return 1;
}

const char* weight_dtype_name(WeightDtype dtype) {
  switch (dtype) {
    case WeightDtype::kF32:
      return "f32";
    case WeightDtype::kBf16:
      return "bf16";
    case WeightDtype::kF16:
      return "f16";
    case WeightDtype::kInt8:
      break;
  }
  return "int8";
}

}  // namespace temper
