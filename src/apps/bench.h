// What the benches share: one JSON object a line on standard output, the summary last, each with the bench, version,
// device, threads and command that made it. A bench is one file bench_NAME.cpp and one row in bench.cpp.
#pragma once
#include <c10/core/Device.h>

#include <string>
#include <utility>
#include <vector>

namespace temper {

using BenchFields = std::vector<std::pair<std::string, double>>;  // in the order of printing

class BenchReport {
 public:
  // argv[0] is the bench's name; device: what it measures.
  BenchReport(int argc, char** argv, at::Device device);

  // One result: the common fields, then these; texts replace numbers of the same name.
  void print(const BenchFields& fields, const std::vector<std::pair<std::string, std::string>>& texts = {}) const;

 private:
  std::vector<std::string> arguments_;
  std::string device_;
};

// q in [0, 1], nearest rank; 0 for no values.
double quantile(std::vector<double> values, double q);

int run_bench_rollout(int argc, char** argv);
int run_bench_train(int argc, char** argv);
int run_bench_comm(int argc, char** argv);
int run_bench_weights(int argc, char** argv);
int run_bench_checkpoint(int argc, char** argv);
int run_bench_hub(int argc, char** argv);

}  // namespace temper
