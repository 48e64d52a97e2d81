#include "model/device.h"

#include <ATen/ATen.h>
#include <c10/core/CachingDeviceAllocator.h>
#include <c10/core/impl/VirtualGuardImpl.h>

#include <algorithm>
#include <cstdlib>
#include <filesystem>
#include <fstream>
#include <vector>

#include "core/system_memory.h"

namespace temper {
namespace {

c10::impl::VirtualGuardImpl cuda() { return c10::impl::VirtualGuardImpl(at::kCUDA); }

int64_t current(const c10::CachingDeviceAllocator::StatArray& stat) { return stat[0].current; }

}  // namespace

bool has_cuda() { return at::hasCUDA(); }

int num_cuda_devices() { return has_cuda() ? cuda().deviceCount() : 0; }

void set_cuda_device(int index) { cuda().setDevice(at::Device(at::kCUDA, static_cast<at::DeviceIndex>(index))); }

at::Device current_cuda_device() { return cuda().getDevice(); }

std::string device_name(at::Device device) {
  if (device.is_cpu()) return "cpu";
  std::vector<std::string> models;  // by bus address, which is also CUDA's order where CUDA_DEVICE_ORDER says so
  std::error_code none;
  for (const auto& gpu : std::filesystem::directory_iterator("/proc/driver/nvidia/gpus", none)) {
    std::ifstream file(gpu.path() / "information");
    for (std::string line; std::getline(file, line);)
      if (line.starts_with("Model:")) models.push_back(line.substr(line.find_first_not_of(" \t", 6)));
  }
  const bool alike = !models.empty() && std::equal(models.begin() + 1, models.end(), models.begin());
  return alike ? device.str() + ": " + models.front() : device.str();
}

int64_t free_memory_bytes(at::Device device) {
  if (device.is_cpu()) return available_memory_bytes();
  c10::DeviceAllocator& allocator = *c10::getDeviceAllocator(device.type());
  if (!allocator.initialized()) at::empty({1}, at::TensorOptions(device));
  const auto stats = allocator.getDeviceStats(device.index());
  return static_cast<int64_t>(allocator.getMemoryInfo(device.index()).first) + current(stats.reserved_bytes) -
         current(stats.allocated_bytes);
}

int64_t peak_device_bytes(at::Device device) {
  if (device.is_cpu()) return 0;
  return c10::getDeviceAllocator(device.type())->getDeviceStats(device.index()).allocated_bytes[0].peak;
}

void set_deterministic(bool value) {
  if (value) setenv("CUBLAS_WORKSPACE_CONFIG", ":4096:8", /*overwrite=*/0);
  at::globalContext().setDeterministicAlgorithms(value, /*warn_only=*/false);
}

at::Tensor to_host(const at::Tensor& x) {
  if (x.is_cpu()) return x;
  const at::Tensor host = at::empty(x.sizes(), at::TensorOptions(x.scalar_type()).pinned_memory(true));
  return at::Tensor(host).copy_(x);
}

void synchronize(at::Device device) {
  if (!device.is_cpu()) c10::impl::VirtualGuardImpl(device.type()).synchronizeDevice(device.index());
}

}  // namespace temper
