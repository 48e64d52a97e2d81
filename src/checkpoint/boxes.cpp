#include "checkpoint/boxes.h"

#include <algorithm>
#include <array>
#include <numeric>
#include <set>

#include "core/error.h"

namespace temper {
namespace {

struct DtypeName {
  at::ScalarType dtype;
  const char* name;
  int64_t size_bytes;
};
constexpr std::array<DtypeName, 10> kDtypes = {{{at::kFloat, "f32", 4},
                                                {at::kBFloat16, "bf16", 2},
                                                {at::kHalf, "f16", 2},
                                                {at::kDouble, "f64", 8},
                                                {at::kLong, "i64", 8},
                                                {at::kInt, "i32", 4},
                                                {at::kShort, "i16", 2},
                                                {at::kChar, "i8", 1},
                                                {at::kByte, "u8", 1},
                                                {at::kBool, "bool", 1}}};

const DtypeName& find_dtype(at::ScalarType dtype) {
  for (const DtypeName& known : kDtypes)
    if (known.dtype == dtype) return known;
  throw ConfigError(
      "A checkpoint cannot hold tensors of type {}. Use one of f32, bf16, f16, f64, i64, i32, i16, i8, u8, bool.",
      c10::toString(dtype));
}

bool intersect(const Box& a, const Box& b) {
  for (size_t d = 0; d < a.start.size(); ++d)
    if (a.start[d] >= b.start[d] + b.size[d] || b.start[d] >= a.start[d] + a.size[d]) return false;
  return true;
}

}  // namespace

std::string dtype_name(at::ScalarType dtype) { return find_dtype(dtype).name; }
int64_t dtype_size_bytes(at::ScalarType dtype) { return find_dtype(dtype).size_bytes; }

bool parse_dtype(const std::string& name, at::ScalarType* dtype) {
  for (const DtypeName& known : kDtypes)
    if (name == known.name) {
      *dtype = known.dtype;
      return true;
    }
  return false;
}

int64_t num_elements(const std::vector<int64_t>& shape) {
  if (std::find(shape.begin(), shape.end(), 0) != shape.end()) return 0;
  int64_t count = 1;
  for (int64_t size : shape)
    if (__builtin_mul_overflow(count, size, &count) || count > (int64_t{1} << 62)) return -1;
  return count;
}

std::vector<Box> boxes_of_range(const std::vector<int64_t>& shape, int64_t begin, int64_t end) {
  if (begin == end) return {};
  if (shape.empty()) return {Box{}};
  if (shape.size() == 1) return {{0, 0, {begin}, {end - begin}}};
  const std::vector<int64_t> row_shape(shape.begin() + 1, shape.end());
  const int64_t row = num_elements(row_shape);
  std::vector<Box> boxes;
  const auto add_part = [&](int64_t index, int64_t from, int64_t to) {  // of one row
    for (Box& box : boxes_of_range(row_shape, from, to)) {
      box.start.insert(box.start.begin(), index);
      box.size.insert(box.size.begin(), 1);
      boxes.push_back(std::move(box));
    }
  };
  const int64_t first = (begin + row - 1) / row, last = end / row;  // whole rows: [first, last)
  if (first > last) {
    add_part(last, begin - last * row, end - last * row);
    return boxes;
  }
  if (begin < first * row) add_part(first - 1, begin - (first - 1) * row, row);
  if (first < last) {
    Box rows{0, 0, std::vector<int64_t>(shape.size(), 0), shape};
    rows.start[0] = first;
    rows.size[0] = last - first;
    boxes.push_back(std::move(rows));
  }
  if (end > last * row) add_part(last, 0, end - last * row);
  return boxes;
}

std::string find_coverage_fault(const TensorRecord& record) {
  const int64_t wanted = num_elements(record.shape);
  if (record.boxes.size() > kMaxBoxesPerTensor)
    return format("{} boxes, at most {} are allowed", record.boxes.size(), kMaxBoxesPerTensor);
  int64_t covered = 0;
  for (size_t i = 0; i < record.boxes.size(); ++i) {
    const Box& box = record.boxes[i];
    if (box.start.size() != record.shape.size() || box.size.size() != record.shape.size())
      return format("box {} does not have the tensor's {} dimensions", i, record.shape.size());
    for (size_t d = 0; d < record.shape.size(); ++d)
      if (box.start[d] < 0 || box.size[d] < 1 || box.size[d] > record.shape[d] ||
          box.start[d] > record.shape[d] - box.size[d])
        return format("box {} spans [{}, +{}) of dimension {}, which has {}", i, box.start[d], box.size[d], d,
                      record.shape[d]);
    covered += num_elements(box.size);  // cannot overflow before it exceeds `wanted`, at most 2^62
    if (covered > wanted) return format("boxes 0 to {} cover more elements than there are, so some overlap", i);
  }
  // Sweep along the dimension that separates the boxes best; only boxes alive at the same time are compared.
  std::vector<size_t> order(record.boxes.size());
  std::iota(order.begin(), order.end(), size_t{0});
  size_t sweep = 0;
  size_t most_starts = 0;
  for (size_t d = 0; d < record.shape.size(); ++d) {
    std::set<int64_t> starts;
    for (const Box& box : record.boxes) starts.insert(box.start[d]);
    if (starts.size() > most_starts) {
      most_starts = starts.size();
      sweep = d;
    }
  }
  if (!record.shape.empty())
    std::sort(order.begin(), order.end(),
              [&](size_t a, size_t b) { return record.boxes[a].start[sweep] < record.boxes[b].start[sweep]; });
  std::vector<size_t> alive;
  for (size_t i : order) {
    const Box& box = record.boxes[i];
    if (!record.shape.empty())
      alive.erase(std::remove_if(alive.begin(), alive.end(),
                                 [&](size_t j) {
                                   const Box& old = record.boxes[j];
                                   return old.start[sweep] + old.size[sweep] <= box.start[sweep];
                                 }),
                  alive.end());
    for (size_t j : alive)
      if (intersect(record.boxes[j], box)) return format("boxes {} and {} overlap", std::min(i, j), std::max(i, j));
    alive.push_back(i);
  }
  if (covered != wanted) return format("the boxes cover {} of {} elements", covered, wanted);
  return "";
}

}  // namespace temper
