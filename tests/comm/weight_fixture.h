// A small model whose bytes follow from the version, cut among ranks, for the tests of the weight wire.
#pragma once
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <map>
#include <string>
#include <vector>

#include "comm/weight_client.h"
#include "comm/weight_server.h"
#include "core/rng.h"
#include "tests/comm/channel_fixture.h"

namespace temper {

struct TestTensor {
  std::string name;
  WeightDtype dtype;
  std::vector<int64_t> shape;
  int64_t elements;
};

inline const std::vector<TestTensor>& test_tensors() {
  static const std::vector<TestTensor> tensors = {{"embed", WeightDtype::kBf16, {37, 16}, 592},
                                                  {"norm", WeightDtype::kF32, {5}, 5},
                                                  {"scale", WeightDtype::kF32, {}, 1},
                                                  {"block.0.up", WeightDtype::kBf16, {64, 33}, 2112},
                                                  {"block.0.codes", WeightDtype::kInt8, {3, 3, 3}, 27},
                                                  {"empty", WeightDtype::kBf16, {0, 8}, 0}};
  return tensors;
}

// Of version v about one byte in a hundred differs from version v - 1.
inline std::string test_bytes(const TestTensor& tensor, PolicyVersion version) {
  SplitMix64 random(std::hash<std::string>()(tensor.name));
  std::string bytes(static_cast<size_t>(tensor.elements * element_bytes(tensor.dtype)), '\0');
  for (char& byte : bytes) byte = static_cast<char>(random.next());
  for (PolicyVersion v = 1; v <= version; ++v)
    for (size_t change = 0; change * 100 < bytes.size(); ++change)
      bytes[random.next() % bytes.size()] = static_cast<char>(random.next());
  return bytes;
}

// The parts of one of num_ranks, unevenly cut: the tensors' ends are at squares, the last of more than two ranks holds
// nothing.
class TestShard {
 public:
  TestShard(int rank, int num_ranks, PolicyVersion version) {
    const int holders = num_ranks > 2 ? num_ranks - 1 : num_ranks;
    if (rank >= holders) return;
    for (const TestTensor& tensor : test_tensors()) {
      const auto cut = [&](int at) { return tensor.elements * at * at / (holders * holders); };
      const int64_t begin = cut(rank), end = cut(rank + 1), element = element_bytes(tensor.dtype);
      bytes_.push_back(test_bytes(tensor, version)
                           .substr(static_cast<size_t>(begin * element), static_cast<size_t>((end - begin) * element)));
      parts_.push_back({tensor.name, tensor.dtype, tensor.shape, begin, end, {}});
    }
    for (size_t i = 0; i < parts_.size(); ++i) parts_[i].bytes = bytes_[i];
  }
  const std::vector<WeightPart>& parts() const { return parts_; }

 private:
  std::vector<std::string> bytes_;
  std::vector<WeightPart> parts_;
};

inline void expect_version(const FetchedWeights& weights, int64_t epoch, PolicyVersion version) {
  EXPECT_EQ(weights.epoch, epoch);
  EXPECT_EQ(weights.version, version);
  EXPECT_EQ(weights.tensors.size(), test_tensors().size());
  for (const TestTensor& tensor : test_tensors()) {
    const auto found = weights.tensors.find(tensor.name);
    ASSERT_NE(found, weights.tensors.end()) << tensor.name;
    EXPECT_EQ(found->second.dtype, tensor.dtype);
    EXPECT_EQ(found->second.shape, tensor.shape);
    EXPECT_EQ(reinterpret_cast<uintptr_t>(found->second.bytes.data()) % 64, 0U);
    EXPECT_TRUE(found->second.bytes == test_bytes(tensor, version)) << tensor.name << " of version " << version;
  }
}

// The servers of all ranks of a trainer, with keys.
class TestTrainer {
 public:
  explicit TestTrainer(int num_ranks, WeightServerOptions options = small_chunks()) : options_(options) {
    for (int rank = 0; rank < num_ranks; ++rank) start(kAnyPort);
  }
  static WeightServerOptions small_chunks() {
    WeightServerOptions options;
    options.chunk_bytes = 301;
    return options;
  }
  void publish(int64_t epoch, PolicyVersion version) {
    for (size_t rank = 0; rank < servers_.size(); ++rank) publish(rank, epoch, version);
  }
  void publish(size_t rank, int64_t epoch, PolicyVersion version) {
    const TestShard shard(static_cast<int>(rank), static_cast<int>(servers_.size()), version);
    servers_[rank]->publish(epoch, version, shard.parts());
  }
  // The processes die and come back at the same addresses.
  void restart() {
    const std::vector<std::string> addresses = endpoints();
    servers_.clear();
    for (const std::string& address : addresses) start(address);
  }
  WeightServer& server(size_t rank) { return *servers_[rank]; }
  std::vector<std::string> endpoints() const {
    std::vector<std::string> endpoints;
    for (const auto& server : servers_) endpoints.push_back(server->address());
    return endpoints;
  }
  const TestKeys& keys() const { return keys_; }

 private:
  void start(const std::string& address) {
    servers_.push_back(std::make_unique<WeightServer>(address, keys_.server(), options_));
  }

  TestKeys keys_;
  WeightServerOptions options_;
  std::vector<std::unique_ptr<WeightServer>> servers_;
};

}  // namespace temper
