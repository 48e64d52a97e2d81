// The contract on MPI: mpirun -n N comm_mpi_test. Every rank runs every case; one that fails anywhere fails the whole.
#include "comm/mpi_communicator.h"
#include "tests/comm/contract.h"

namespace temper {
namespace {

class MpiContract : public ::testing::Test {
 public:
  MpiContract(Communicator& world, void (*run)(Communicator&)) : world_(world), run_(run) {}
  void TestBody() override { run_(world_); }

 private:
  Communicator& world_;
  void (*run_)(Communicator&);
};

}  // namespace
}  // namespace temper

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  // "--leave RANK": that rank dies without a word, to see what becomes of the others.
  const int leaving = argc == 3 && std::string(argv[1]) == "--leave" ? std::stoi(argv[2]) : -1;
  temper::MpiWorld world({.timeout = std::chrono::seconds(60), .check_agreement = true});
  const auto comm = world.communicator();
  if (leaving >= 0) {
    if (comm->rank() == leaving) std::_Exit(9);
    comm->barrier("with all");
    return 0;
  }
  for (const temper::ContractCase& contract : temper::kContract)
    ::testing::RegisterTest("MpiContract", contract.name, nullptr, nullptr, __FILE__, __LINE__,
                            [&comm, &contract] { return new temper::MpiContract(*comm, contract.run); });
  const int code = RUN_ALL_TESTS();
  const at::Tensor worst = at::full({1}, code, at::kInt);
  comm->all_reduce("result", worst, temper::ReduceOp::kMax).wait();
  return worst.item<int>();
}
