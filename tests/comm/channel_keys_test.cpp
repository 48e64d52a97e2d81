#include "comm/channel_keys.h"

#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <filesystem>

#include "comm/hub_file.h"
#include "core/error.h"
#include "core/files.h"

namespace temper {
namespace {

class ChannelKeys : public testing::Test {
 protected:
  ChannelKeys() {
    std::filesystem::remove_all(dir_);
    std::filesystem::create_directories(dir_);
  }
  ~ChannelKeys() override { std::filesystem::remove_all(dir_); }
  int mode_of(const std::string& name) const {
    struct stat status {};
    EXPECT_EQ(::stat((keys_ + name).c_str(), &status), 0) << name;
    return status.st_mode & 0777;
  }
  std::string dir_ = testing::TempDir() + "temper_channel_keys", keys_ = dir_ + "/keys";
};

TEST_F(ChannelKeys, AreMadeForTheirOwnerAlone) {
  make_job_keys(keys_);
  EXPECT_EQ(mode_of(""), 0700);
  for (const char* name : {"/hub.key", "/worker.key", "/allowed_workers"}) EXPECT_EQ(mode_of(name), 0600) << name;
  const ServerKeys server = read_server_keys(keys_);
  const ClientKeys client = read_client_keys(keys_, server.own.public_key);
  EXPECT_TRUE(is_key(server.own.public_key));
  EXPECT_NE(server.own.public_key, client.own.public_key);
  EXPECT_THAT(server.allowed_clients, testing::ElementsAre(client.own.public_key));
  EXPECT_THROW(make_job_keys(keys_), IoError);  // not overwritten
  make_job_keys_if_missing(keys_);
  EXPECT_EQ(read_server_keys(keys_).own.secret_key, server.own.secret_key);
}

TEST_F(ChannelKeys, ThatOthersMayReadAreRefused) {
  make_job_keys(keys_);
  std::filesystem::permissions(keys_ + "/worker.key", std::filesystem::perms(0640));
  try {
    read_client_keys(keys_, "");
    FAIL() << "no error";
  } catch (const IoError& error) {
    EXPECT_THAT(error.what(), testing::HasSubstr("chmod 600"));
    EXPECT_THAT(error.what(), testing::HasSubstr("worker.key"));
  }
  std::filesystem::permissions(keys_, std::filesystem::perms(0755));
  EXPECT_THROW(read_server_keys(keys_), IoError);
}

TEST_F(ChannelKeys, ThatAreNoneAreNamed) {
  make_job_keys(keys_);
  write_file_atomically(keys_ + "/allowed_workers", "short\n");
  EXPECT_THROW(read_server_keys(keys_), FormatError);
  std::filesystem::remove(keys_ + "/hub.key");
  EXPECT_THROW(read_server_keys(keys_), IoError);
  const std::string path = keys_ + "/worker.key";
  write_file_atomically(path, R"({"public": "x", "secret": 3})");
  std::filesystem::permissions(path, std::filesystem::perms(0600));
  EXPECT_THROW(read_key_pair(path), FormatError);
}

TEST_F(ChannelKeys, HubFileComesBackAndHoldsNoSecret) {
  make_job_keys(keys_);
  const ServerKeys keys = read_server_keys(keys_);
  const std::string path = dir_ + "/hub.json";
  write_hub_file(path, {.address = "tcp://127.0.0.1:5",
                        .public_key = keys.own.public_key,
                        .weight_addresses = {"tcp://127.0.0.1:6", "tcp://127.0.0.1:7"},
                        .run_id = "run",
                        .epoch = 3});
  const HubFile hub = read_hub_file(path);
  EXPECT_EQ(hub.address, "tcp://127.0.0.1:5");
  EXPECT_EQ(hub.public_key, keys.own.public_key);
  EXPECT_THAT(hub.weight_addresses, testing::ElementsAre("tcp://127.0.0.1:6", "tcp://127.0.0.1:7"));
  EXPECT_EQ(hub.run_id, "run");
  EXPECT_EQ(hub.epoch, 3);
  EXPECT_EQ(hub.pid, ::getpid());
  EXPECT_EQ(read_file(path).find(keys.own.secret_key), std::string::npos);
  EXPECT_FALSE(why_stale(hub));
}

TEST_F(ChannelKeys, HubFileOfADeadRunIsStale) {
  const std::string path = dir_ + "/hub.json";
  const pid_t child = ::fork();
  if (child == 0) {
    write_hub_file(path, {.address = "tcp://127.0.0.1:5"});
    ::_exit(0);
  }
  int status = 0;
  ASSERT_EQ(::waitpid(child, &status, 0), child);
  HubFile hub = read_hub_file(path);
  ASSERT_TRUE(why_stale(hub));
  EXPECT_THAT(*why_stale(hub), testing::HasSubstr(std::to_string(child)));
  hub.pid = ::getpid();  // the number is taken again, by a process that started later
  EXPECT_THAT(why_stale(hub).value_or(""), testing::HasSubstr("another one now"));
  hub.host = "elsewhere";
  EXPECT_FALSE(why_stale(hub));
}

TEST_F(ChannelKeys, HubFileThatIsNoneIsNamed) {
  const std::string path = dir_ + "/hub.json";
  EXPECT_THROW(read_hub_file(path), IoError);
  for (const char* text : {"", "[]", "{}", R"({"format": 2})", R"({"format": 1, "address": 3})"}) {
    write_file_atomically(path, text);
    EXPECT_THROW(read_hub_file(path), FormatError) << text;
  }
}

}  // namespace
}  // namespace temper
