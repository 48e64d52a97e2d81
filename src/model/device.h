// What a device of the process can be asked, CPU or GPU, without its own headers: a build of LibTorch without CUDA
// links the same code. Any thread.
#pragma once
#include <ATen/core/Tensor.h>

#include <cstdint>
#include <string>

namespace temper {

// Whether this build of LibTorch knows CUDA and the machine has a GPU.
bool has_cuda();
int num_cuda_devices();
// The GPU that this thread's tensors go to from now on, and the one they go to now.
void set_cuda_device(int index);
at::Device current_cuda_device();

// "cuda:0: NVIDIA H100 80GB HBM3", as far as the driver tells.
std::string device_name(at::Device device);

// Free memory: of the machine (or its cgroup), or of the GPU with what the allocator keeps unused.
int64_t free_memory_bytes(at::Device device);
// The most that tensors on a GPU took since the process began; 0 on the CPU, whose process tells.
int64_t peak_device_bytes(at::Device device);
// LibTorch's deterministic kernels, on the CPU and on GPUs. Before the first product on a GPU, whose library reads its
// part of the setting then.
void set_deterministic(bool value);
// A copy in the CPU's memory, at the speed of the bus (through page-locked memory); the tensor itself where it is
// there.
at::Tensor to_host(const at::Tensor& x);
// Waits for everything that was started on the device; nothing is started on the CPU without being done.
void synchronize(at::Device device);

}  // namespace temper
