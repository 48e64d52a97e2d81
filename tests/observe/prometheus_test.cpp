#include "observe/prometheus.h"

#include <arpa/inet.h>
#include <gmock/gmock.h>
#include <gtest/gtest.h>
#include <netinet/in.h>
#include <sys/socket.h>
#include <unistd.h>

#include <cmath>
#include <limits>

#include "core/error.h"

namespace temper {
namespace {

using testing::AllOf;
using testing::HasSubstr;
using testing::Not;
using testing::StartsWith;

sockaddr_in loopback(const std::string& port) {
  sockaddr_in address{};
  address.sin_family = AF_INET;
  address.sin_port = htons(static_cast<uint16_t>(std::stoi(port)));
  address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
  return address;
}

// What a Prometheus server gets from 127.0.0.1:PORT.
std::string scrape(const std::string& address, const std::string& path = "/metrics") {
  const sockaddr_in where = loopback(address.substr(address.rfind(':') + 1));
  const int socket = ::socket(AF_INET, SOCK_STREAM, 0);
  EXPECT_EQ(::connect(socket, reinterpret_cast<const sockaddr*>(&where), sizeof where), 0);
  const std::string request = "GET " + path + " HTTP/1.1\r\nHost: " + address + "\r\nConnection: close\r\n\r\n";
  EXPECT_EQ(::send(socket, request.data(), request.size(), 0), static_cast<ssize_t>(request.size()));
  std::string reply;
  char bytes[4096];
  for (ssize_t count; (count = ::recv(socket, bytes, sizeof bytes, 0)) > 0;)
    reply.append(bytes, static_cast<size_t>(count));
  ::close(socket);
  return reply;
}

MetricRecord record_of(int64_t step) {
  MetricRecord record;
  record.stage = "grpo";
  record.step = step;
  record.policy_version = 20 + step;
  record.time = 1.5e9;
  record.values = {{"loss", 0.25}, {"rewards/exact/mean", 0.5}, {"eval/add1/avg@8", 0.125}, {"num_tokens", 100}};
  return record;
}

TEST(Prometheus, NamesAreMappedToItsRules) {
  EXPECT_EQ(prometheus_name("loss"), "temper_loss");
  EXPECT_EQ(prometheus_name("timing_s/save_checkpoint_blocked"), "temper_timing_s_save_checkpoint_blocked");
  EXPECT_EQ(prometheus_name("eval/gsm8k-test/pass@8"), "temper_eval_gsm8k_test_pass_8");
  EXPECT_EQ(prometheus_name("rewards/größe/mean"), "temper_rewards_gr____e_mean");
}

TEST(Prometheus, EveryMetricIsAGaugeOfItsStage) {
  PrometheusEndpoint endpoint("127.0.0.1:0", "tiny");
  endpoint.begin_stage("grpo", 50);
  endpoint.write(record_of(3));
  const std::string reply = scrape(endpoint.address());
  EXPECT_THAT(reply, StartsWith("HTTP/1.1 200 OK"));
  EXPECT_THAT(reply,
              AllOf(HasSubstr("# TYPE temper_loss gauge"), HasSubstr("\ntemper_loss{stage=\"grpo\"} 0.25"),
                    HasSubstr("\ntemper_rewards_exact_mean{stage=\"grpo\"} 0.5"),
                    HasSubstr("\ntemper_eval_add1_avg_8{stage=\"grpo\"} 0.125"),
                    HasSubstr("\ntemper_step{stage=\"grpo\"} 3"), HasSubstr("\ntemper_max_steps{stage=\"grpo\"} 50"),
                    HasSubstr("\ntemper_policy_version{stage=\"grpo\"} 23")));
  EXPECT_THAT(reply, AllOf(HasSubstr("run=\"tiny\""), HasSubstr("version=\"" TEMPER_VERSION "\"")));
}

TEST(Prometheus, CountersCountStepsTokensAndSaves) {
  PrometheusEndpoint endpoint("127.0.0.1:0", "tiny");
  endpoint.begin_stage("grpo", 50);
  EXPECT_THAT(scrape(endpoint.address()), HasSubstr("\ntemper_failed_saves_total{stage=\"grpo\"} 0"));
  endpoint.write(record_of(0));  // an evaluation
  endpoint.write(record_of(1));
  endpoint.write(record_of(2));
  endpoint.saved(true);
  endpoint.saved(false);
  endpoint.saved(false);
  const std::string reply = scrape(endpoint.address());
  EXPECT_THAT(
      reply,
      AllOf(HasSubstr("# TYPE temper_steps_total counter"), HasSubstr("\ntemper_steps_total{stage=\"grpo\"} 2"),
            HasSubstr("\ntemper_tokens_total{stage=\"grpo\"} 200"), HasSubstr("\ntemper_saves_total{stage=\"grpo\"} 1"),
            HasSubstr("\ntemper_failed_saves_total{stage=\"grpo\"} 2")));
}

TEST(Prometheus, StagesStandBesideEachOtherAndNanIsSaid) {
  PrometheusEndpoint endpoint("127.0.0.1:0", "tiny");
  MetricRecord record = record_of(1);
  endpoint.write(record);
  record.stage = "ppo";
  record.values = {{"loss", std::numeric_limits<double>::quiet_NaN()}};
  endpoint.write(record);
  EXPECT_THAT(scrape(endpoint.address()),
              AllOf(HasSubstr("\ntemper_loss{stage=\"grpo\"} 0.25"), HasSubstr("\ntemper_loss{stage=\"ppo\"} Nan")));
}

TEST(Prometheus, OfTwoMetricsWithOneNameTheFirstKeepsIt) {
  PrometheusEndpoint endpoint("127.0.0.1:0", "tiny");
  MetricRecord record = record_of(1);
  record.values = {{"eval/a-b/accuracy", 0.25}, {"eval/a_b/accuracy", 0.75}};
  endpoint.write(record);
  EXPECT_THAT(scrape(endpoint.address()),
              AllOf(HasSubstr("\ntemper_eval_a_b_accuracy{stage=\"grpo\"} 0.25"), Not(HasSubstr("0.75"))));
}

TEST(Prometheus, ABusyPortIsSaid) {
  const PrometheusEndpoint first("127.0.0.1:0", "one");
  try {
    const PrometheusEndpoint second(first.address(), "two");
    FAIL() << "two listen on one port";
  } catch (const ConfigError& error) {
    EXPECT_THAT(error.what(), AllOf(HasSubstr("log.prometheus = \"" + first.address() + "\""),
                                    HasSubstr("another process has that port"), HasSubstr("Choose another port")));
  }
  EXPECT_THROW(PrometheusEndpoint("192.0.2.1:0", "elsewhere"), ConfigError);  // no address of this machine
}

TEST(Prometheus, NothingElseIsServed) {
  const PrometheusEndpoint endpoint("127.0.0.1:0", "tiny");
  EXPECT_THAT(scrape(endpoint.address(), "/"), HasSubstr("404"));
  EXPECT_THAT(scrape(endpoint.address(), "/../../etc/passwd"), Not(HasSubstr("root:")));
}

}  // namespace
}  // namespace temper
