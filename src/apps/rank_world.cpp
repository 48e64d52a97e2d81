#include "apps/rank_world.h"

#include <algorithm>
#include <set>

#include "apps/model_source.h"
#include "comm/nccl_communicator.h"
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

}  // namespace temper
