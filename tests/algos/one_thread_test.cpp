// Tensors of a few dozen numbers: threads would only wait for each other.
#include <ATen/Parallel.h>
#include <gtest/gtest.h>

namespace temper {
namespace {

class OneThread : public ::testing::Environment {
  void SetUp() override { at::set_num_threads(1); }
};

const auto* const kOneThread = ::testing::AddGlobalTestEnvironment(new OneThread);

}  // namespace
}  // namespace temper
