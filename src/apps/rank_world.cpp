#include "apps/rank_world.h"

#include "apps/model_source.h"
#include "comm/nccl_communicator.h"
#include "model/device.h"

namespace temper {

std::unique_ptr<Communicator> connect_ranks(MpiWorld& world, Device device, const CommOptions& options) {
  std::unique_ptr<Communicator> communicator = world.communicator();
  if (compute_device(device).is_cpu()) return communicator;
  const int gpu = device_of_local_rank(world.local_rank());
  set_cuda_device(gpu);
  return make_nccl_communicator(std::move(communicator), gpu, options);
}

}  // namespace temper
