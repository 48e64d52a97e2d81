// The metrics of a run for a Prometheus server, at http://ADDRESS/metrics in its text format. Each metric is a gauge
// temper_NAME, NAME with an underscore for every character that Prometheus does not take ("eval/add1/avg@8" ->
// temper_eval_add1_avg_8), with its stage as a label; steps, tokens and saves are counters too, which begin anew with
// the process, as Prometheus expects. Apps own the endpoint and write from one thread; it answers from its own.
#pragma once
#include <cstdint>
#include <memory>
#include <string>
#include <string_view>

#include "core/metric_record.h"

namespace temper {

// "rewards/exact/mean" -> "temper_rewards_exact_mean"
std::string prometheus_name(std::string_view metric);

class PrometheusEndpoint {
 public:
  // address: HOST:PORT, port 0 for any that is free. ConfigError where it cannot listen there.
  PrometheusEndpoint(const std::string& address, const std::string& run);
  ~PrometheusEndpoint();
  PrometheusEndpoint(const PrometheusEndpoint&) = delete;
  PrometheusEndpoint& operator=(const PrometheusEndpoint&) = delete;

  const std::string& address() const { return address_; }  // with the port that it listens on

  void begin_stage(const std::string& stage, int64_t max_steps);
  void write(const MetricRecord& record);
  void saved(bool good);  // a checkpoint of the stage that began last

 private:
  struct Metrics;

  std::string address_;
  std::string stage_;
  std::unique_ptr<Metrics> metrics_;
};

}  // namespace temper
