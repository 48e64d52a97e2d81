#include "checkpoint/boxes.h"

#include <gmock/gmock.h>

#include <numeric>

namespace temper {
namespace {

using testing::HasSubstr;

TensorRecord matrix(std::vector<Box> boxes) { return {"w", at::kInt, {4, 6}, std::move(boxes)}; }

TEST(Boxes, EachElementInExactlyOneBoxIsAccepted) {
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 0}, {4, 6}}})), "");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 0}, {1, 6}}, {1, 0, {1, 0}, {3, 6}}})), "");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 4}, {4, 2}}, {1, 0, {0, 0}, {4, 4}}})), "");
  EXPECT_EQ(find_coverage_fault({"scalar", at::kInt, {}, {{0, 0, {}, {}}}}), "");
  EXPECT_EQ(find_coverage_fault({"empty", at::kInt, {3, 0}, {}}), "");
}

TEST(Boxes, HolesOverlapsAndBoxesOutsideAreNamed) {
  EXPECT_EQ(find_coverage_fault(matrix({})), "the boxes cover 0 of 24 elements");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 0}, {3, 6}}})), "the boxes cover 18 of 24 elements");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 0}, {2, 6}}, {0, 48, {1, 0}, {2, 6}}})), "boxes 0 and 1 overlap");
  EXPECT_THAT(find_coverage_fault(matrix({{0, 0, {0, 0}, {4, 6}}, {0, 0, {0, 0}, {4, 6}}})), HasSubstr("some overlap"));
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {2, 0}, {3, 6}}})), "box 0 spans [2, +3) of dimension 0, which has 4");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0, 0}, {4, 0}}})), "box 0 spans [0, +0) of dimension 1, which has 6");
  EXPECT_EQ(find_coverage_fault(matrix({{0, 0, {0}, {4}}})), "box 0 does not have the tensor's 2 dimensions");
  EXPECT_THAT(find_coverage_fault({"empty", at::kInt, {3, 0}, {{0, 0, {0, 0}, {1, 1}}}}), HasSubstr("which has 0"));
}

TEST(Boxes, ManyRowOrColumnBoxesAreChecked) {
  TensorRecord rows{"w", at::kFloat, {60000, 2}, {}};
  TensorRecord columns{"w", at::kFloat, {2, 60000}, {}};
  for (int64_t i = 0; i < 60000; ++i) {
    rows.boxes.push_back({0, 0, {i, 0}, {1, 2}});
    columns.boxes.push_back({0, 0, {0, i}, {2, 1}});
  }
  EXPECT_EQ(find_coverage_fault(rows), "");
  EXPECT_EQ(find_coverage_fault(columns), "");
  rows.boxes[41234].start[0] = 41235;
  EXPECT_EQ(find_coverage_fault(rows), "boxes 41234 and 41235 overlap");
  rows.boxes.resize(kMaxBoxesPerTensor + 1, rows.boxes[0]);
  EXPECT_EQ(find_coverage_fault(rows), "65537 boxes, at most 65536 are allowed");
}

TEST(Boxes, NumElementsRefusesOverflow) {
  EXPECT_EQ(num_elements({}), 1);
  EXPECT_EQ(num_elements({int64_t{1} << 62, 0, int64_t{1} << 62}), 0);
  EXPECT_EQ(num_elements({int64_t{1} << 31, int64_t{1} << 31}), int64_t{1} << 62);
  EXPECT_EQ(num_elements({int64_t{1} << 32, int64_t{1} << 31}), -1);
  EXPECT_EQ(num_elements({int64_t{1} << 40, int64_t{1} << 40, int64_t{1} << 40}), -1);
}

TEST(Boxes, EveryDtypeHasOneName) {
  for (const char* name : {"f32", "bf16", "f16", "f64", "i64", "i32", "i16", "i8", "u8", "bool"}) {
    at::ScalarType dtype;
    ASSERT_TRUE(parse_dtype(name, &dtype));
    EXPECT_EQ(dtype_name(dtype), name);
    EXPECT_EQ(dtype_size_bytes(dtype), static_cast<int64_t>(c10::elementSize(dtype)));
  }
  at::ScalarType dtype;
  EXPECT_FALSE(parse_dtype("F32", &dtype));
}

TEST(Boxes, OfARangeFollowEachOtherInMemory) {
  for (const std::vector<int64_t>& shape :
       std::vector<std::vector<int64_t>>{{}, {5}, {3, 4}, {1, 6}, {6, 1}, {2, 3, 4}, {3, 1, 2, 2}}) {
    const int64_t elements = num_elements(shape);
    for (int64_t begin = 0; begin <= elements; ++begin)
      for (int64_t end = begin; end <= elements; ++end) {
        int64_t next = begin;
        const std::vector<Box> boxes = boxes_of_range(shape, begin, end);
        for (const Box& box : boxes) {
          ASSERT_EQ(box.start.size(), shape.size());
          int64_t first = 0, last = 0;  // elements of the box, in the whole
          for (size_t d = 0; d < shape.size(); ++d) {
            ASSERT_GE(box.size[d], 1);
            ASSERT_LE(box.start[d] + box.size[d], shape[d]);
            first = first * shape[d] + box.start[d];
            last = last * shape[d] + box.start[d] + box.size[d] - 1;
          }
          EXPECT_EQ(first, next);
          next += num_elements(box.size);
          EXPECT_EQ(last, next - 1);  // so no gap lies inside
        }
        EXPECT_EQ(next, end);
        EXPECT_LE(boxes.size(), std::max<size_t>(1, 2 * shape.size()));
      }
  }
}

}  // namespace
}  // namespace temper
