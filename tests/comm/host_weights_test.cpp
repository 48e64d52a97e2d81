#include "comm/host_weights.h"

#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>

#include "comm/weight_version.h"
#include "core/error.h"
#include "tests/comm/weight_fixture.h"

namespace temper {
namespace {

namespace fs = std::filesystem;

class HostWeightsTest : public testing::Test {
 protected:
  HostWeightsTest() { fs::create_directories(dir_); }
  ~HostWeightsTest() override { fs::remove_all(dir_); }

  // One part of one rank, with a checksum.
  static WeightVersion version_of(PolicyVersion version, const std::string& bytes) {
    const auto size = static_cast<int64_t>(bytes.size());
    return {3, version, {{"a", WeightDtype::kInt8, {size}, 0, size, bytes}}, 1000};
  }
  static std::vector<WeightManifest> manifests_of(const WeightVersion& version) {
    std::vector<WeightManifest> manifests = {version.manifest()};
    manifests[0].request = 1;
    return manifests;
  }
  // As a fetch does it, up to the commit.
  static void write(HostWeights& host, PolicyVersion version, const std::string& bytes) {
    ASSERT_TRUE(host.try_begin());
    const auto memory = host.create(manifests_of(version_of(version, bytes)), 4032);
    std::memcpy(memory->data(), bytes.data(), bytes.size());
  }
  // What `act` leaves behind that a process does before it is killed.
  void in_killed_process(const std::function<void()>& act) {
    const pid_t child = ::fork();
    if (child == 0) {
      act();
      ::raise(SIGKILL);
    }
    int status = 0;
    ASSERT_EQ(::waitpid(child, &status, 0), child);
    ASSERT_TRUE(WIFSIGNALED(status));
  }
  WeightClientOptions options() const {
    WeightClientOptions options;
    options.host_dir = dir_;
    options.run_id = "run";
    return options;
  }

  const std::string dir_ = testing::TempDir() + "temper_host_weights." + std::to_string(::getpid());
  const std::string bytes_ = std::string(3999, 'w') + "e";
  static constexpr int64_t kMaxBytes = 1 << 20;
};

TEST_F(HostWeightsTest, WhatOneCommitsTheOthersFind) {
  HostWeights writer(dir_, "run"), reader(dir_, "run");
  EXPECT_EQ(reader.find(3, -1, kMaxBytes), nullptr);
  write(writer, 5, bytes_);
  EXPECT_EQ(reader.find(3, -1, kMaxBytes), nullptr);
  EXPECT_FALSE(reader.try_begin());
  writer.commit(3, 5);
  writer.end();
  const auto found = reader.find(3, 4, kMaxBytes);
  ASSERT_NE(found, nullptr);
  EXPECT_EQ(found->view().version, 5);
  EXPECT_EQ(found->view().tensors.at("a").bytes, bytes_);
  EXPECT_EQ(reader.find(3, 5, kMaxBytes), nullptr);
  EXPECT_EQ(reader.find(2, -1, kMaxBytes), nullptr);
  // A newer one takes its place; who has the older keeps it.
  write(reader, 6, bytes_);
  reader.commit(3, 6);
  EXPECT_EQ(writer.find(3, -1, kMaxBytes)->view().version, 6);
  EXPECT_FALSE(fs::exists(writer.folder() + "/weights.3.5"));
  EXPECT_EQ(found->view().tensors.at("a").bytes, bytes_);
}

TEST_F(HostWeightsTest, TheOthersSeeThatAFetchGetsOn) {
  HostWeights writer(dir_, "run"), reader(dir_, "run");
  ASSERT_TRUE(writer.try_begin());
  const int64_t before = reader.progress();
  EXPECT_EQ(reader.progress(), before);
  const auto end = patience();
  while (reader.progress() == before && std::chrono::steady_clock::now() < end) writer.note_progress();
  EXPECT_GT(reader.progress(), before);
}

TEST_F(HostWeightsTest, HalfACopyOfADeadProcessIsNeverUsed) {
  HostWeights host(dir_, "run");
  in_killed_process([&] {
    HostWeights dying(dir_, "run");
    write(dying, 5, bytes_.substr(0, 1000));
  });
  EXPECT_TRUE(fs::exists(host.folder() + "/incoming"));
  EXPECT_EQ(host.find(3, -1, kMaxBytes), nullptr);
  write(host, 5, bytes_);
  host.commit(3, 5);
  EXPECT_EQ(host.find(3, -1, kMaxBytes)->view().tensors.at("a").bytes, bytes_);
}

TEST_F(HostWeightsTest, ADamagedCopyIsRemoved) {
  for (const int64_t at : {0L, 9L, 17L, 40L, 4096L, 8000L}) {
    HostWeights host(dir_, "run");
    write(host, 5, bytes_);
    host.commit(3, 5);
    const std::string path = host.folder() + "/weights.3.5";
    std::fstream file(path, std::ios::in | std::ios::out | std::ios::binary);
    file.seekp(at);
    file.put('\x7f');
    file.close();
    EXPECT_EQ(host.find(3, -1, kMaxBytes), nullptr) << at;
    EXPECT_FALSE(fs::exists(path)) << at;
  }
  HostWeights host(dir_, "run");
  for (const size_t size : {0, 10, 24, 4096, 8000}) {
    write(host, 5, bytes_);
    host.commit(3, 5);
    fs::resize_file(host.folder() + "/weights.3.5", size);
    EXPECT_EQ(host.find(3, -1, kMaxBytes), nullptr) << size;
  }
}

TEST_F(HostWeightsTest, TheLastCleansUp) {
  auto first = std::make_unique<HostWeights>(dir_, "run"), second = std::make_unique<HostWeights>(dir_, "run");
  const std::string folder = first->folder();
  write(*first, 5, bytes_);
  first->commit(3, 5);
  first.reset();
  EXPECT_TRUE(fs::exists(folder + "/weights.3.5"));
  EXPECT_EQ(remove_unused_host_weights(dir_), 0);
  second.reset();
  EXPECT_FALSE(fs::exists(folder));
}

TEST_F(HostWeightsTest, WhatDeadProcessesLeftIsRemoved) {
  in_killed_process([&] { new HostWeights(dir_, "old"); });
  EXPECT_EQ(remove_unused_host_weights(dir_), 1);
  in_killed_process([&] { new HostWeights(dir_, "old"); });
  const HostWeights host(dir_, "run");
  EXPECT_EQ(std::distance(fs::directory_iterator(dir_), fs::directory_iterator()), 1);
}

TEST_F(HostWeightsTest, FoldersOfOthersAndOddNamesAreRefused) {
  EXPECT_THROW(HostWeights(dir_, "../up"), ConfigError);
  EXPECT_THROW(HostWeights(dir_, ""), ConfigError);
  const std::string folder = HostWeights(dir_, "run").folder();
  fs::create_directory(folder);
  fs::permissions(folder, fs::perms::all);
  EXPECT_THROW(HostWeights(dir_, "run"), IoError);
}

TEST_F(HostWeightsTest, WithoutRoomItSaysSo) {
  HostWeights host(dir_, "run");
  ASSERT_TRUE(host.try_begin());
  rlimit before{};
  ASSERT_EQ(::getrlimit(RLIMIT_FSIZE, &before), 0);
  const rlimit small{1 << 20, before.rlim_max};
  std::signal(SIGXFSZ, SIG_IGN);
  ASSERT_EQ(::setrlimit(RLIMIT_FSIZE, &small), 0);
  EXPECT_THROW(host.create(manifests_of(version_of(5, bytes_)), 2 << 20), IoError);
  ::setrlimit(RLIMIT_FSIZE, &before);
  EXPECT_FALSE(fs::exists(host.folder() + "/incoming"));
}

TEST_F(HostWeightsTest, WorkersOfAHostFetchAVersionOnce) {
  TestTrainer trainer(2);
  std::vector<std::unique_ptr<WeightClient>> workers;
  for (int worker = 0; worker < 4; ++worker)
    workers.push_back(std::make_unique<WeightClient>(trainer.endpoints(), trainer.keys().client(), options()));
  for (PolicyVersion version = 0; version < 4; ++version) {
    trainer.publish(1, version);
    std::vector<std::thread> threads;
    for (const auto& worker : workers)
      threads.emplace_back([&] { expect_version(worker->fetch(1, version, patience()), 1, version); });
    for (std::thread& thread : threads) thread.join();
    const WeightServerCounters served = trainer.server(0).counters();
    EXPECT_EQ(served.full_transfers, 1);
    EXPECT_EQ(served.delta_transfers, version);
  }
  int64_t host_copies = 0;
  for (const auto& worker : workers) host_copies += worker->counters().host_copies;
  EXPECT_EQ(host_copies, 4 * 3);
  workers.clear();
  EXPECT_TRUE(fs::is_empty(dir_));
}

TEST_F(HostWeightsTest, BehindOneThatNeverEndsEachFetchesForItself) {
  TestTrainer trainer(1);
  trainer.publish(1, 0);
  HostWeights stopped(dir_, "run");
  ASSERT_TRUE(stopped.try_begin());
  WeightClientOptions impatient = options();
  impatient.host_patience = 20ms;
  WeightClient client(trainer.endpoints(), trainer.keys().client(), impatient);
  expect_version(client.fetch(1, 0, patience()), 1, 0);
  EXPECT_EQ(client.counters().host_copies, 0);
}

}  // namespace
}  // namespace temper
