// What every back end of Communicator promises, as cases that each rank runs. Included by the test of each back end.
#pragma once
#include <ATen/ATen.h>
#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <vector>

#include "comm/communicator.h"
#include "core/error.h"

namespace temper {

inline const std::vector<at::ScalarType> kCommDtypes = {at::kDouble, at::kFloat, at::kBFloat16,
                                                        at::kLong,   at::kInt,   at::kByte};

// Where the tensors of the cases lie; they are compared on the CPU.
inline at::Device contract_device = at::kCPU;

inline at::TensorOptions options_of(at::ScalarType dtype) { return at::device(contract_device).dtype(dtype); }

// Small whole numbers, exact in every dtype: element i of rank r.
inline at::Tensor numbers_of(int rank, int64_t count, at::ScalarType dtype) {
  return at::arange(count, at::kLong).remainder_(5).add_(rank).to(options_of(dtype));
}

inline void expect_equal(const at::Tensor& got, const at::Tensor& wanted, const std::string& where) {
  EXPECT_TRUE(at::equal(got.cpu().to(at::kDouble), wanted.cpu().to(at::kDouble))) << where;
}

template <class Check>
void for_dtypes_and_sizes(const Check& check) {
  for (const at::ScalarType dtype : kCommDtypes)
    for (const int64_t count : {1, 3, 64, 1021})
      check(dtype, count, std::string(at::toString(dtype)) + " " + std::to_string(count));
}

inline void all_reduce_sums(Communicator& comm) {
  for_dtypes_and_sizes([&](at::ScalarType dtype, int64_t count, const std::string& where) {
    at::Tensor sum = at::zeros({count}, options_of(dtype)), top = sum.clone();
    for (int r = 0; r < comm.size(); ++r) {
      reduce_into(sum, numbers_of(r, count, dtype), ReduceOp::kSum);
      reduce_into(top, numbers_of(r, count, dtype), ReduceOp::kMax);
    }
    const at::Tensor mine = numbers_of(comm.rank(), count, dtype), largest = mine.clone(), least = mine.clone();
    comm.all_reduce("sum", mine).wait();
    comm.all_reduce("largest", largest, ReduceOp::kMax).wait();
    comm.all_reduce("least", least, ReduceOp::kMin).wait();
    expect_equal(mine, sum, "sum " + where);
    expect_equal(largest, top, "max " + where);
    expect_equal(least, numbers_of(0, count, dtype), "min " + where);
  });
}

inline void reduce_scatter_and_all_gather_are_inverse_to_splitting(Communicator& comm) {
  for_dtypes_and_sizes([&](at::ScalarType dtype, int64_t count, const std::string& where) {
    const int64_t total = count * comm.size();
    at::Tensor sum = at::zeros({total}, options_of(dtype));
    for (int r = 0; r < comm.size(); ++r) reduce_into(sum, numbers_of(r, total, dtype), ReduceOp::kSum);
    const at::Tensor in = numbers_of(comm.rank(), total, dtype);
    const at::Tensor apart = at::empty({count}, options_of(dtype)), within = in.narrow(0, comm.rank() * count, count);
    comm.reduce_scatter("apart", in, apart).wait();
    comm.reduce_scatter("within", in, within).wait();  // out lies in in
    expect_equal(apart, sum.narrow(0, comm.rank() * count, count), where);
    expect_equal(within, apart, "in place " + where);
    const at::Tensor whole = at::empty({total}, options_of(dtype)), filled = at::zeros({total}, options_of(dtype));
    comm.all_gather("whole", apart, whole).wait();
    filled.narrow(0, comm.rank() * count, count).copy_(apart);
    comm.all_gather("filled", filled.narrow(0, comm.rank() * count, count), filled).wait();
    expect_equal(whole, sum, where);
    expect_equal(filled, sum, "in place " + where);
  });
}

inline void all_to_all_sends_part_r_to_rank_r(Communicator& comm) {
  for_dtypes_and_sizes([&](at::ScalarType dtype, int64_t count, const std::string& where) {
    const at::Tensor in = numbers_of(comm.rank(), count * comm.size(), dtype), out = at::empty_like(in);
    comm.all_to_all("swap", in, out).wait();
    for (int r = 0; r < comm.size(); ++r)
      expect_equal(out.narrow(0, r * count, count),
                   numbers_of(r, count * comm.size(), dtype).narrow(0, comm.rank() * count, count), where);
  });
}

inline void broadcast_reaches_all_from_any_root(Communicator& comm) {
  for_dtypes_and_sizes([&](at::ScalarType dtype, int64_t count, const std::string& where) {
    for (int root = 0; root < comm.size(); ++root) {
      const at::Tensor tensor = numbers_of(comm.rank(), count, dtype);
      comm.broadcast("tell", tensor, root).wait();
      expect_equal(tensor, numbers_of(root, count, dtype), where);
    }
  });
}

inline void handles_may_be_waited_for_in_any_order(Communicator& comm) {
  constexpr int kOperations = 12;
  std::vector<at::Tensor> tensors;
  std::vector<CommHandle> handles;
  for (int i = 0; i < kOperations; ++i) {
    tensors.push_back(at::full({1000 + i}, comm.rank() + i, options_of(at::kFloat)));
    handles.push_back(comm.all_reduce("part " + std::to_string(i), tensors.back()));
  }
  const int ranks = comm.size() * (comm.size() - 1) / 2;
  for (int i = kOperations - 1; i >= 0; --i) {
    handles[static_cast<size_t>(i)].wait();
    EXPECT_TRUE(handles[static_cast<size_t>(i)].done());
    expect_equal(tensors[static_cast<size_t>(i)], at::full({1000 + i}, ranks + comm.size() * i), "part");
  }
  comm.barrier("end");
}

inline void texts_of_any_length_are_gathered(Communicator& comm) {
  const auto text_of = [](int rank) {
    return std::string(static_cast<size_t>(7 * rank), 'x') + "\0é" + std::to_string(rank);
  };
  const std::vector<std::string> texts = comm.gather_texts("texts", text_of(comm.rank()));
  ASSERT_EQ(texts.size(), static_cast<size_t>(comm.size()));
  for (int r = 0; r < comm.size(); ++r) EXPECT_EQ(texts[static_cast<size_t>(r)], text_of(r));
  for (const std::string& text : comm.gather_texts("nothing", "")) EXPECT_EQ(text, "");
}

inline void split_makes_groups_in_the_order_of_the_keys(Communicator& comm) {
  const int color = comm.rank() % 2;
  const auto half = comm.split(color, -comm.rank());  // the last rank first
  const int expected = (comm.size() - color + 1) / 2;
  ASSERT_EQ(half->size(), expected);
  EXPECT_EQ(half->rank(), expected - 1 - comm.rank() / 2);
  const at::Tensor mine = at::full({1}, comm.rank(), options_of(at::kLong));
  const at::Tensor all = at::empty({half->size()}, options_of(at::kLong));
  half->all_gather("members", mine, all).wait();
  for (int r = 0; r < half->size(); ++r) EXPECT_EQ(all[r].item<int64_t>(), color + 2 * (half->size() - 1 - r));
  const auto alone = half->split(half->rank(), 0);  // a split of a split
  EXPECT_EQ(alone->size(), 1);
  alone->barrier("alone");
  comm.barrier("all");  // and the whole goes on
}

inline void every_call_of_one_rank_is_compared_where_asked(Communicator& comm) {
  // With check_agreement only; every rank calls the same here.
  const at::Tensor tensor = at::ones({3}, options_of(at::kFloat));
  comm.all_reduce("a", tensor).wait();
  expect_equal(tensor, at::full({3}, comm.size()), "agreement");
}

struct ContractCase {
  const char* name;
  void (*run)(Communicator&);
};
inline void PrintTo(const ContractCase& contract, std::ostream* out) { *out << contract.name; }

inline const std::vector<ContractCase> kContract = {
    {"AllReduceSums", all_reduce_sums},
    {"ReduceScatterAndAllGatherAreInverseToSplitting", reduce_scatter_and_all_gather_are_inverse_to_splitting},
    {"AllToAllSendsPartRToRankR", all_to_all_sends_part_r_to_rank_r},
    {"BroadcastReachesAllFromAnyRoot", broadcast_reaches_all_from_any_root},
    {"HandlesMayBeWaitedForInAnyOrder", handles_may_be_waited_for_in_any_order},
    {"TextsOfAnyLengthAreGathered", texts_of_any_length_are_gathered},
    {"SplitMakesGroupsInTheOrderOfTheKeys", split_makes_groups_in_the_order_of_the_keys},
    {"EveryCallIsComparedWhereAsked", every_call_of_one_rank_is_compared_where_asked},
};

}  // namespace temper
