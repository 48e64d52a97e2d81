// temper bench comm: the bandwidth of each collective operation, as nccl-tests count it. Started by mpirun or srun it
// measures those processes, on the CPU (MPI) or with a GPU each (NCCL), else threads of this one.
#include <ATen/ATen.h>

#include <functional>
#include <optional>
#include <thread>

#include "apps/bench.h"
#include "apps/command_line.h"
#include "apps/model_source.h"
#include "apps/rank_world.h"
#include "comm/thread_communicator.h"
#include "core/clock.h"
#include "core/error.h"

namespace temper {
namespace {

struct Operation {
  const char* name;
  // Bytes that cross the slowest link for each byte of the larger buffer:
  // https://github.com/NVIDIA/nccl-tests/blob/master/doc/PERFORMANCE.md
  double (*bus_factor)(double ranks);
  void (*run)(Communicator& comm, const at::Tensor& whole, const at::Tensor& part);
};

constexpr Operation kOperations[] = {
    {"all_reduce", [](double n) { return 2 * (n - 1) / n; },
     [](Communicator& comm, const at::Tensor& whole, const at::Tensor&) { comm.all_reduce("bench", whole).wait(); }},
    {"reduce_scatter", [](double n) { return (n - 1) / n; },
     [](Communicator& comm, const at::Tensor& whole, const at::Tensor& part) {
       comm.reduce_scatter("bench", whole, part).wait();
     }},
    {"all_gather", [](double n) { return (n - 1) / n; },
     [](Communicator& comm, const at::Tensor& whole, const at::Tensor& part) {
       comm.all_gather("bench", part, whole).wait();
     }},
    {"all_to_all", [](double n) { return (n - 1) / n; },
     [](Communicator& comm, const at::Tensor& whole, const at::Tensor&) {
       comm.all_to_all("bench", whole, at::empty_like(whole)).wait();
     }},
    {"broadcast", [](double) { return 1.0; },
     [](Communicator& comm, const at::Tensor& whole, const at::Tensor&) { comm.broadcast("bench", whole, 0).wait(); }},
};

// Every rank runs this; `print` is called on the first.
void measure(Communicator& comm, at::Device device, int64_t max_bytes, double seconds,
             const std::function<void(const BenchFields&)>& print) {
  for (size_t o = 0; o < std::size(kOperations); ++o)
    for (int64_t bytes = 1024; bytes <= max_bytes; bytes *= 8) {
      const Operation& operation = kOperations[o];
      const int64_t part_elements = std::max<int64_t>(1, bytes / 4 / comm.size());
      const at::Tensor whole = at::zeros({part_elements * comm.size()}, at::TensorOptions(device));
      const at::Tensor part = at::zeros({part_elements}, at::TensorOptions(device));
      operation.run(comm, whole, part);
      std::vector<double> times;
      double total = 0;
      for (bool more = true; more;) {
        const Stopwatch watch;
        operation.run(comm, whole, part);
        times.push_back(watch.seconds());
        total += times.back();
        const at::Tensor go_on = at::full({1}, comm.rank() == 0 && total < seconds ? 1 : 0, at::kInt);
        comm.broadcast("more", go_on, 0).wait();
        more = go_on.item<int>() != 0;
      }
      if (comm.rank() != 0) continue;
      const double median = quantile(times, 0.5), real_bytes = static_cast<double>(whole.nbytes());
      print({{"op", static_cast<double>(o)},
             {"ranks", comm.size()},
             {"bytes", real_bytes},
             {"time_us", median * 1e6},
             {"algorithm_gb_s", real_bytes / median / 1e9},
             {"bus_gb_s", real_bytes / median / 1e9 * operation.bus_factor(comm.size())}});
    }
}

}  // namespace

int run_bench_comm(int argc, char** argv) {
  CommandLine line("bench comm", "Measures collective operations among ranks.", "[--ranks N]");
  line.add_option("ranks", "N", "threads, where no launcher has started processes", "2");
  line.add_option("device", "cpu|cuda", "of the buffers; cuda: through NCCL, started by mpirun or srun", "cpu");
  line.add_option("max-mb", "MIB", "largest buffer", "32");
  line.add_option("seconds", "S", "of each operation and size, at least", "0.2");
  if (!line.parse(argc, argv)) return 0;
  const int64_t max_bytes = line.integer("max-mb", 1, 1 << 16) << 20;
  const double seconds = line.number("seconds");
  const Device wanted = line.one_of("device", {"cpu", "cuda"}) == "cuda" ? Device::kCuda : Device::kCpu;
  std::optional<MpiWorld> world;
  std::unique_ptr<Communicator> communicator;
  if (is_launched_by_mpi()) {
    world.emplace();
    communicator = connect_ranks(*world, wanted);
  }
  const at::Device device = compute_device(wanted);
  const BenchReport report(argc, argv, device);
  const auto print = [&](const BenchFields& fields) {
    report.print(fields, {{"op", kOperations[static_cast<size_t>(fields.front().second)].name}});
  };
  if (communicator) {
    measure(*communicator, device, max_bytes, seconds, print);
    communicator->barrier("end");
    return 0;
  }
  if (!device.is_cpu())
    throw ConfigError("--device=cuda needs a process for each GPU: mpirun -n GPUS temper bench comm --device=cuda.");
  const auto num_ranks = static_cast<int>(line.integer("ranks", 2, 64));
  ThreadWorld threads(num_ranks);
  std::vector<std::thread> ranks;
  for (int r = 0; r < num_ranks; ++r)
    ranks.emplace_back([&, r] { measure(*threads.communicator(r), device, max_bytes, seconds, print); });
  for (std::thread& rank : ranks) rank.join();
  return 0;
}

}  // namespace temper
