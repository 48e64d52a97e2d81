#include "observe/prometheus.h"

#include <prometheus/counter.h>
#include <prometheus/exposer.h>
#include <prometheus/gauge.h>
#include <prometheus/registry.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <set>

#include "core/error.h"
#include "core/log.h"
#include "core/process.h"

namespace temper {
namespace {

// CivetWeb throws the same for every address that it cannot listen on.
std::unique_ptr<prometheus::Exposer> listen(const std::string& address) {
  constexpr size_t kThreads = 2;
  try {
    return std::make_unique<prometheus::Exposer>(address, kThreads);
  } catch (const std::exception&) {
    throw ConfigError(
        "log.prometheus = \"{}\": cannot listen there: another process has that port, or this machine no such address. "
        "Choose another port, or \"\" for no endpoint.",
        address);
  }
}

}  // namespace

struct PrometheusEndpoint::Metrics {
  Metrics(const std::string& address, const std::string& run)
      : registry(std::make_shared<prometheus::Registry>()), exposer(listen(address)) {
    prometheus::BuildGauge()
        .Name("temper_info")
        .Help("1; its labels say what runs here")
        .Register(*registry)
        .Add({{"run", run}, {"version", TEMPER_VERSION}, {"host", host_name()}})
        .Set(1);
    exposer->RegisterCollectable(registry);
  }

  prometheus::Family<prometheus::Counter>& counters(const char* name, const char* help) {
    return prometheus::BuildCounter().Name(name).Help(help).Register(*registry);
  }
  prometheus::Counter& steps(const std::string& stage) {
    return counters("temper_steps_total", "Training steps of this process").Add({{"stage", stage}});
  }
  prometheus::Counter& tokens(const std::string& stage) {
    return counters("temper_tokens_total", "Prompt and completion tokens of those steps").Add({{"stage", stage}});
  }
  prometheus::Counter& saves(const std::string& stage, bool good) {
    return (good ? counters("temper_saves_total", "Checkpoints that this process wrote")
                 : counters("temper_failed_saves_total", "Checkpoints that it could not write"))
        .Add({{"stage", stage}});
  }
  void set(const std::string& name, const std::string& help, const std::string& stage, double value) {
    prometheus::BuildGauge().Name(name).Help(help).Register(*registry).Add({{"stage", stage}}).Set(value);
  }

  // Two metrics whose names differ only in what Prometheus does not take: the first keeps the name.
  bool owns_name(const std::string& name, const std::string& metric) {
    const auto [entry, added] = names.try_emplace(name, metric);
    if (entry->second == metric) return true;
    if (clashes.insert(metric).second)
      log_warning("metrics {} and {} are both {} to Prometheus: the second is left out.", entry->second, metric, name);
    return false;
  }

  std::shared_ptr<prometheus::Registry> registry;  // shared, as the exposer asks for
  std::map<std::string, std::string> names;        // Prometheus's -> ours
  std::set<std::string> clashes;                   // warned of
  std::unique_ptr<prometheus::Exposer> exposer;    // goes first: it reads the registry
};

std::string prometheus_name(std::string_view metric) {
  std::string name = "temper_";
  for (const char c : metric) {
    const bool taken = (c >= 'a' && c <= 'z') || (c >= 'A' && c <= 'Z') || (c >= '0' && c <= '9') || c == '_';
    name += taken ? c : '_';
  }
  return name;
}

PrometheusEndpoint::PrometheusEndpoint(const std::string& address, const std::string& run)
    : metrics_(std::make_unique<Metrics>(address, run)) {
  const std::vector<int> ports = metrics_->exposer->GetListeningPorts();
  TEMPER_CHECK(!ports.empty(), "{} listens on no port", address);
  address_ = address.substr(0, address.rfind(':') + 1) + std::to_string(ports.front());
}

PrometheusEndpoint::~PrometheusEndpoint() = default;

void PrometheusEndpoint::begin_stage(const std::string& stage, int64_t max_steps) {
  stage_ = stage;
  metrics_->set("temper_max_steps", "Steps of the stage", stage, static_cast<double>(max_steps));
  // There from the start, so that a rate can be taken from the first event on.
  metrics_->steps(stage);
  metrics_->tokens(stage);
  for (const bool good : {true, false}) metrics_->saves(stage, good);
}

void PrometheusEndpoint::write(const MetricRecord& record) {
  metrics_->set("temper_step", "Steps done in the stage", record.stage, static_cast<double>(record.step));
  metrics_->set("temper_policy_version", "Steps done in the run", record.stage,
                static_cast<double>(record.policy_version));
  metrics_->set("temper_time_seconds", "When the latest record was made, since the Unix epoch", record.stage,
                record.time);
  for (const auto& [metric, value] : record.values) {
    const std::string name = prometheus_name(metric);
    if (metrics_->owns_name(name, metric)) metrics_->set(name, metric, record.stage, value);
  }
  if (record.step == 0) return;  // an evaluation
  metrics_->steps(record.stage).Increment();
  if (const double* tokens = record.find("num_tokens"); tokens != nullptr && std::isfinite(*tokens))
    metrics_->tokens(record.stage).Increment(*tokens);
}

void PrometheusEndpoint::saved(bool good) { metrics_->saves(stage_, good).Increment(); }

}  // namespace temper
