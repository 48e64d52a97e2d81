// The contract on NCCL: mpirun -n N comm_nccl_test, once for tensors on the GPU and once for tensors of the host. With
// a word behind it, what becomes of rank 0 when the others do not do their part:
//   late    they do not come to an operation        unmet   nor have they come to any before
//   gone    they abort                              dies    the last one's process ends
#include <iostream>
#include <thread>

#include "comm/mpi_communicator.h"
#include "comm/nccl_communicator.h"
#include "tests/comm/contract.h"
#include "tests/comm/nccl_ranks.h"

namespace temper {
namespace {

void host_and_gpu_tensors_take_turns(Communicator& comm) {
  std::vector<at::Tensor> tensors;
  std::vector<CommHandle> handles;
  for (int i = 0; i < 8; ++i) {
    tensors.push_back(at::full({100}, comm.rank() + i, i % 2 == 0 ? options_of(at::kFloat) : at::kFloat));
    handles.push_back(comm.all_reduce("part " + std::to_string(i), tensors.back()));
  }
  const int ranks = comm.size() * (comm.size() - 1) / 2;
  for (size_t i = handles.size(); i-- > 0;) {
    handles[i].wait();
    expect_equal(tensors[i], at::full({100}, ranks + comm.size() * static_cast<int>(i)), "part");
  }
}

void operations_wait_for_the_callers_stream(Communicator& comm) {
  constexpr int kAdditions = 200;  // some milliseconds of the GPU
  const at::Tensor tensor = at::zeros({16 << 20}, options_of(at::kFloat));
  for (int i = 0; i < kAdditions; ++i) tensor.add_(1);
  comm.all_reduce("just written", tensor).wait();
  const at::Tensor ends = at::stack({tensor.min(), tensor.max()});
  expect_equal(ends, at::full({2}, kAdditions * comm.size()), "written before");
}

void any_overlap_is_allowed(Communicator& comm) {
  const int64_t count = 5, total = count * comm.size();
  const at::Tensor apart = numbers_of(comm.rank(), total, at::kInt), swapped = at::empty_like(apart);
  comm.all_to_all("apart", apart, swapped).wait();
  comm.all_to_all("in place", apart, apart).wait();
  expect_equal(apart, swapped, "all_to_all in place");
  const at::Tensor buffer = numbers_of(comm.rank(), total + count, at::kInt),
                   out = at::empty({total}, buffer.options());
  comm.all_gather("apart", buffer.narrow(0, total, count).clone(), out).wait();
  const at::Tensor shifted = buffer.narrow(0, 1, total), in = buffer.narrow(0, total, count);  // in ends behind out
  comm.all_gather("shifted", in, shifted).wait();
  expect_equal(shifted, out, "all_gather into a shifted part");
}

const std::vector<ContractCase> kGpuCases = {
    {"HostAndGpuTensorsTakeTurns", host_and_gpu_tensors_take_turns},
    {"OperationsWaitForTheCallersStream", operations_wait_for_the_callers_stream},
    {"AnyOverlapIsAllowed", any_overlap_is_allowed},
};

class NcclContract : public ::testing::Test {
 public:
  NcclContract(Communicator& world, at::Device device, void (*run)(Communicator&))
      : world_(world), device_(device), run_(run) {}
  void TestBody() override {
    contract_device = device_;
    run_(world_);
  }

 private:
  Communicator& world_;
  at::Device device_;
  void (*run_)(Communicator&);
};

void add_cases(const char* suite, const std::vector<ContractCase>& cases, Communicator& world, at::Device device) {
  for (const ContractCase& contract : cases)
    ::testing::RegisterTest(suite, contract.name, nullptr, nullptr, __FILE__, __LINE__,
                            [&world, device, &contract] { return new NcclContract(world, device, contract.run); });
}

int run_contract(Communicator& comm, at::Device gpu) {
  add_cases("NcclContractOnGpu", kContract, comm, gpu);
  add_cases("NcclContractOnGpu", kGpuCases, comm, gpu);
  add_cases("NcclContractOnHost", kContract, comm, at::kCPU);
  const int code = RUN_ALL_TESTS();
  const at::Tensor worst = at::full({1}, code, at::kInt);
  comm.all_reduce("result", worst, ReduceOp::kMax).wait();
  return worst.item<int>();
}

// Rank 0 prints how its operation ended, for the caller to compare: the exit code is that of the abort.
void run_without_peers(const std::string& how, Communicator& comm, at::Device gpu, std::chrono::seconds timeout) {
  const at::Tensor tensor = at::ones({4}, at::device(gpu).dtype(at::kFloat));
  if (how != "unmet") comm.all_reduce("together", tensor).wait();
  if (how == "dies" && comm.rank() == comm.size() - 1) std::_Exit(9);
  if (comm.rank() > 0 && how != "dies") {
    if (how == "gone") comm.abort("this rank leaves.");
    std::this_thread::sleep_for(3 * timeout);
    return;
  }
  const auto start = std::chrono::steady_clock::now();
  try {
    comm.all_reduce("never", tensor).wait();
    std::cout << how << ": it ended well, which it should not" << std::endl;
  } catch (const CommError& error) {
    const std::chrono::duration<double> time = std::chrono::steady_clock::now() - start;
    std::cout << how << ": " << (time < timeout + std::chrono::seconds(5) ? "in time" : "too late") << ", after "
              << time.count() << " s: " << error.what() << std::endl;
  }
}

}  // namespace
}  // namespace temper

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  const std::string how = argc == 2 ? argv[1] : "";
  temper::part_hosts_where_gpus_are_few();
  temper::MpiWorld world({.timeout = std::chrono::seconds(60), .check_agreement = true});
  // The comparison would find the missing rank before the operation itself does.
  const std::chrono::seconds timeout(how.empty() ? 60 : 10);
  const temper::CommOptions options{.timeout = timeout, .check_agreement = how.empty()};
  const at::Device gpu = temper::take_gpu(world.local_rank());
  const auto comm = temper::make_nccl_communicator(world.communicator(), gpu.index(), options);
  if (how.empty()) return temper::run_contract(*comm, gpu);
  temper::run_without_peers(how, *comm, gpu, timeout);
  return 0;
}
