#include <ATen/Context.h>
#include <ATen/Parallel.h>
#include <torch/version.h>

#include <iostream>
#include <thread>

#include "apps/commands.h"
#include "core/format.h"
#include "model/device.h"
#include "model/matmul.h"
#include "temper_commit.h"  // made by cmake/commit.cmake

namespace temper {

void print_version() {
  std::cout << "temper " << TEMPER_VERSION << " (" << TEMPER_COMMIT << ")\n"
            << "build     " << TEMPER_BUILD_TYPE << ", GCC " << __VERSION__ << "\n"
            << "libtorch  " << TORCH_VERSION << "\n"
            << "device    cpu, " << std::thread::hardware_concurrency() << " threads, " << at::get_cpu_capability()
            << ", bf16 products "
            << (cpu_has_bf16() ? "in hardware (dtype auto is bf16)" : "not in hardware (dtype auto is f32)") << "\n"
            << "cuda      " << (has_cuda() ? format("{} GPUs", num_cuda_devices()) : "none") << "\n";
}

}  // namespace temper
