#include "apps/rank_world.h"

#include <algorithm>
#include <cmath>
#include <cstdlib>
#include <set>

#include "apps/model_source.h"
#include "comm/nccl_communicator.h"
#include "core/clock.h"
#include "core/log.h"
#include "core/process.h"
#include "model/device.h"

namespace temper {

std::unique_ptr<Communicator> connect_ranks(MpiWorld& world, Device device, const CommOptions& options) {
  std::unique_ptr<Communicator> communicator = world.communicator();
  if (compute_device(device).is_cpu()) return communicator;
  const int gpu = device_of_local_rank(world.local_rank());
  set_cuda_device(gpu);
  return make_nccl_communicator(std::move(communicator), gpu, options);
}

namespace {

// The first group of neighbours that is spread out without need.
void warn_of_spread_group(const std::vector<std::string>& machines, size_t group_size, const char* what,
                          const char* consequence) {
  for (size_t first = 0; first < machines.size(); first += group_size) {
    const auto begin = machines.begin() + static_cast<std::ptrdiff_t>(first),
               end = begin + static_cast<std::ptrdiff_t>(group_size);
    const std::set<std::string> used(begin, end);
    const auto on_first = static_cast<size_t>(std::count(machines.begin(), machines.end(), *begin));
    if (used.size() == 1 || on_first < group_size) continue;
    log_warning(
        "ranks {} to {} {}, on {} machines, though {} has {} ranks: {} the network. Number the ranks machine by "
        "machine (mpirun --map-by core, srun --distribution=block).",
        first, first + group_size - 1, what, used.size(), *begin, on_first, consequence);
    return;
  }
}

}  // namespace

void warn_of_placement(const Ranks& ranks) {
  if (ranks.num_replicas() == 1 && ranks.tensor_group() == nullptr) return;
  const std::vector<std::string> machines = ranks.communicator()->gather_texts("machines", host_name());
  if (!ranks.leads()) return;
  if (ranks.tensor_group() != nullptr)
    warn_of_spread_group(machines, static_cast<size_t>(ranks.tensor_group()->size()), "share each layer",
                         "every layer's sums cross");
  if (ranks.num_replicas() > 1)
    warn_of_spread_group(machines, static_cast<size_t>(ranks.size() / ranks.num_replicas()), "hold one replica",
                         "every layer's weights cross");
}

void warn_of_clocks(const Ranks& ranks) {
  constexpr double kTolerance = 5;  // seconds; the ranks do not look at the same instant
  if (ranks.size() == 1) return;
  ranks.wait_for_all("clocks");
  const std::vector<std::string> times =
      ranks.communicator()->gather_texts("clocks", format("{} {}", std::llround(seconds_since_epoch()), host_name()));
  if (!ranks.leads()) return;
  const int64_t mine = std::stoll(times[0]);
  for (size_t r = 1; r < times.size(); ++r) {
    const int64_t ahead = std::stoll(times[r]) - mine;
    if (static_cast<double>(std::abs(ahead)) <= kTolerance) continue;
    log_warning(
        "the clock of rank {}'s machine ({}) is {} s {} that of rank 0 ({}): times in logs and status.json mislead. "
        "Synchronise the machines with NTP.",
        r, times[r].substr(times[r].find(' ') + 1), std::abs(ahead), ahead > 0 ? "ahead of" : "behind", host_name());
    return;
  }
}

}  // namespace temper
