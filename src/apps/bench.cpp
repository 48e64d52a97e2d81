// temper bench NAME: finds the bench and runs it.
#include "apps/bench.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cmath>
#include <fstream>
#include <iostream>
#include <nlohmann/json.hpp>

#include "apps/commands.h"
#include "core/error.h"
#include "core/nearest_name.h"
#include "model/device.h"

namespace temper {
namespace {

struct Bench {
  std::string_view name;
  std::string_view help;
  int (*run)(int argc, char** argv);  // argv[0] is the bench's name
};

constexpr Bench kBenches[] = {
    {"rollout", "generation: tokens/s, latencies, memory, share of the matrix-product limit", run_bench_rollout},
    {"train", "training: tokens/s, memory, share of the matrix-product limit, hidden communication", run_bench_train},
    {"checkpoint", "checkpoints: stall, bandwidth beside raw writes and reads, cost to training, flipped bits detected",
     run_bench_checkpoint},
    {"comm", "collective operations among ranks: bus bandwidth by operation and size", run_bench_comm},
    {"weights", "weight updates from trainer ranks to a worker: bandwidth, share of the channel's, size of deltas",
     run_bench_weights},
    {"hub", "the hub of rollout workers: groups/s, wait for a lease, memory", run_bench_hub},
};

void print_help(std::ostream& out) {
  out << "Measures a part on this machine; one JSON line a result, the summary last.\n\n"
         "Usage: temper bench NAME [--help]\n\n";
  for (const Bench& bench : kBenches) out << "  " << bench.name << "  " << bench.help << "\n";
  out << "\nEach takes --log-level LEVEL (default: info); temper bench NAME --help shows the options of its own.\n";
}

std::string cpu_name() {
  std::ifstream file("/proc/cpuinfo");
  for (std::string line; std::getline(file, line);)
    if (line.starts_with("model name")) return line.substr(line.find(':') + 2);
  return "unknown";
}

}  // namespace

BenchReport::BenchReport(int argc, char** argv, at::Device device)
    : arguments_(argv, argv + argc), device_(device.is_cpu() ? "cpu: " + cpu_name() : device_name(device)) {}

void BenchReport::print(const BenchFields& fields,
                        const std::vector<std::pair<std::string, std::string>>& texts) const {
  nlohmann::ordered_json line = {{"bench", arguments_.front()},
                                 {"version", TEMPER_VERSION},
                                 {"device", device_},
                                 {"threads", at::get_num_threads()},
                                 {"command", "temper bench " + join(arguments_, " ")}};
  for (const auto& [name, value] : fields) line[name] = value;
  for (const auto& [name, text] : texts) line[name] = text;
  std::cout << line.dump() << std::endl;
}

double quantile(std::vector<double> values, double q) {
  if (values.empty()) return 0;
  const auto rank = static_cast<int64_t>(std::ceil(q * static_cast<double>(values.size()))) - 1;
  const auto at = values.begin() + std::clamp<int64_t>(rank, 0, static_cast<int64_t>(values.size()) - 1);
  std::nth_element(values.begin(), at, values.end());
  return *at;
}

int run_bench(int argc, char** argv) {
  const std::string name = argc > 1 ? argv[1] : "--help";
  if (name == "--help" || name == "-h") {
    print_help(argc > 1 ? std::cout : std::cerr);
    return argc > 1 ? 0 : static_cast<int>(ExitCode::kConfig);
  }
  std::vector<std::string> names;
  for (const Bench& bench : kBenches) {
    if (bench.name == name) return bench.run(argc - 1, argv + 1);
    names.emplace_back(bench.name);
  }
  throw ConfigError("unknown bench '{}': the nearest is '{}'. Benches: {}.", name, nearest_name(name, names),
                    join(names));
}

}  // namespace temper
