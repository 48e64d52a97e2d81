// Ranks with GPUs, for the tests that mpirun starts.
#pragma once
#include <ATen/ATen.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <cstdlib>
#include <string>

#include "comm/nccl_communicator.h"

namespace temper {

// NCCL refuses two ranks on one GPU of one host. Where there are fewer GPUs than ranks, each rank names a host of its
// own, and NCCL carries everything through sockets of the loopback interface. Before any call of NCCL.
inline void part_hosts_where_gpus_are_few() {
  const char* rank = std::getenv("OMPI_COMM_WORLD_LOCAL_RANK");
  const char* size = std::getenv("OMPI_COMM_WORLD_LOCAL_SIZE");
  if (rank == nullptr || size == nullptr || std::stoi(size) <= c10::impl::VirtualGuardImpl(at::kCUDA).deviceCount())
    return;
  setenv("NCCL_HOSTID", (std::string("host-of-rank-") + rank).c_str(), /*overwrite=*/1);
  setenv("NCCL_NET", "Socket", 0);
  setenv("NCCL_SOCKET_IFNAME", "lo", 0);
  setenv("NCCL_IB_DISABLE", "1", 0);
  setenv("NCCL_NVLS_ENABLE", "0", 0);  // both need GPUs that see each other
  setenv("NCCL_MNNVL_ENABLE", "0", 0);
}

// The rank's, which is current and up afterwards: that does not count as time of the ranks' first meeting.
inline at::Device take_gpu(int local_rank) {
  const at::Device gpu(at::kCUDA, static_cast<at::DeviceIndex>(device_of_local_rank(local_rank)));
  c10::impl::VirtualGuardImpl(at::kCUDA).setDevice(gpu);
  at::empty({1}, at::TensorOptions(gpu));
  return gpu;
}

}  // namespace temper
