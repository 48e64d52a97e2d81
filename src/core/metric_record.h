// One line of metrics.jsonl: the train loop emits it, apps hand it to observe. Names are those of docs/metrics.md.
#pragma once
#include <cstdint>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace temper {

struct MetricRecord {
  std::string stage;
  int64_t step = 0;  // within the stage; 0 = evaluated before the first step
  int64_t policy_version = 0;
  double time = 0;                                     // seconds since the Unix epoch
  std::vector<std::pair<std::string, double>> values;  // in the order of emission

  void set(std::string_view name, double value) {
    for (auto& [known, old] : values)
      if (known == name) {
        old = value;
        return;
      }
    values.emplace_back(name, value);
  }
  const double* find(std::string_view name) const {
    for (const auto& [known, value] : values)
      if (known == name) return &value;
    return nullptr;
  }
};

}  // namespace temper
